"""Turn collected rows of published measurements (as in measured_serving.csv) into facts in a uniform form.

Here stands what the sources say of how they measured: request counts, limits, formats. A row it does not understand is
no fact; `interpret_rows` counts those by reason.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from erhpc.twin.measured import Fact

GPUS = {
    "A100-SXM4-40GB(mem inferred)": "a100_40",
    "NVIDIA A100-SXM4-40GB": "a100_40",
    "A100-SXM4-40GB": "a100_40",
    "NVIDIA A100-SXM4-80GB": "a100_80",
    "A100-SXM4-80GB": "a100_80",
    "A100-PCIE-80GB": "a100_80_pcie",
    "NVIDIA H100 80GB HBM3": "h100_80",
    "H100-80GB": "h100_80",
    "H200-141GB": "h200_141",
    "NVIDIA H200": "h200_141",
}
# AccelMark's suite C hands quantization=gptq (the kernel before Marlin) to the offline engine only; the online one is
# left to choose and takes Marlin.
KERNELS = {
    "fp16": "plain", "bf16": "plain", "fp8": "fp8", "w8a8": "int8", "w8a16": "int8_weights", "w4a16": "marlin",
}  # fmt: skip
ACCELMARK_REQUESTS = 300
"""online_request_count of suites A and C; suite B's at that time is not known and taken as the same."""


def interpret_rows(path: Path) -> tuple[list[Fact], Counter[str]]:
    """The facts of a collected table, and how many rows were not understood, by reason."""
    facts: list[Fact] = []
    refused: Counter[str] = Counter()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                facts += interpret_row(row)
            except ValueError as error:
                refused[str(error)] += 1
    return facts, refused


def interpret_row(row: dict[str, str]) -> list[Fact]:
    """The facts of one row, one per measured number. Raises ValueError with the reason if there is none."""
    measures = {name: row[name] for name in ("out_tok_s", "ttft_ms", "tpot_ms") if row[name].strip()}
    if not measures:
        raise ValueError("no measured number")
    if row["gpu"] not in GPUS:
        raise ValueError(f"no constants for {row['gpu']}: a GPU file is missing")
    if row["dtype"] not in KERNELS:
        raise ValueError(f"no kernel for {row['dtype']}")
    common: dict[str, Any] = {
        "stream_interval": 0,  # all of them were measured within the engine's process
        "model": _model(row["model"]),
        "gpu": GPUS[row["gpu"]],
        "tensor_parallel": int(row["tp"]),
        "kernel": KERNELS[row["dtype"]],
        "source": row["source"],
    } | _engine(row)
    return [
        Fact(**common, measure=name, value=float(value), left_out="") for name, value in measures.items()
    ]  # fmt: skip


def _model(name: str) -> str:
    if "8B" in name and "Llama-3" in name:
        return "llama3-8b"
    if "70B" in name and "Llama-3" in name:
        return "llama3-70b"
    raise ValueError(f"no shape for {name}")


def _engine(row: dict[str, str]) -> dict[str, Any]:
    engine = row["engine"]
    if "AccelMark" in engine:
        return _accelmark(row)
    if engine.startswith("TensorRT-LLM") and row["concurrency"] == "max":
        is_old = "0.14" in engine
        # trtllm-bench: KV cache of 95 % of what weights leave, fp8 cache with fp8 weights.
        return {
            "kv_element_bytes": 1.0 if row["dtype"] == "fp8" else 2.0,
            "profile": "trt-llm-0.14" if is_old else "trt-llm-1.0",
            "load": "maximum", "level": 0.0, "num_requests": 0,
            "input_tokens": int(row["input_len"]), "output_tokens": int(row["output_len"]),
            "max_num_seqs": 2048, "max_num_batched_tokens": 8192, "memory_share": 0.95, "is_eager": False,
        }  # fmt: skip
    if row["concurrency"].startswith("batch:") and "offline" in engine:
        return {
            "kv_element_bytes": 2.0,
            "profile": "vllm-v0" if engine.startswith("vLLM") else "trt-llm",
            "load": "static", "level": float(row["concurrency"][6:]), "num_requests": 0,
            "input_tokens": int(row["input_len"]), "output_tokens": int(row["output_len"]),
            "max_num_seqs": 256, "max_num_batched_tokens": 8192, "memory_share": 0.9, "is_eager": False,
        }  # fmt: skip
    raise ValueError(f"engine or load not understood: {engine[:60]}, {row['concurrency']}")


def _accelmark(row: dict[str, str]) -> dict[str, Any]:
    """AccelMark runs vLLM's engine within its own process: no HTTP, limits of the engine's own defaults."""
    concurrency, engine = row["concurrency"], row["engine"]
    is_v0 = "vLLM 0.7" in engine
    is_offline = concurrency.startswith("batch:")
    if is_offline:
        load, level = "burst", float(concurrency[6:].split("(")[0])
    elif concurrency.startswith("qps:"):
        load, level = "rate", float(concurrency[4:])
    else:
        load, level = ("serial" if concurrency == "1" else "closed"), float(concurrency)
    # Defaults inside a process: V1 128 sequences (SchedulerConfig.DEFAULT_MAX_NUM_SEQS) and 2,048 tokens; V0 256
    # sequences and prompts up to max_model_len = 4,096.
    online = (256, 4096) if is_v0 else (128, 2048)
    seqs, tokens = (512, 4096 if is_v0 else 8192) if is_offline else online
    profile = ("vllm-v0" if is_offline else "vllm-v0-online") if is_v0 else "vllm-v1-async"
    kernel = {"kernel": "gptq_legacy"} if is_offline and row["dtype"] == "w4a16" else {}
    return kernel | {
        "kv_element_bytes": 2.0, "profile": profile, "load": load, "level": level,
        "num_requests": ACCELMARK_REQUESTS if load == "rate" else 0,
        "input_tokens": 256, "output_tokens": 347, "max_num_seqs": seqs, "max_num_batched_tokens": tokens,
        "memory_share": 0.9,
        "is_eager": not is_v0 and "suite C" in engine,  # its configuration for vLLM 0.20 turns CUDA graphs off there
    }  # fmt: skip

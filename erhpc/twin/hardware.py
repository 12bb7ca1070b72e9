"""The model's constants as data: what a GPU, a matrix kernel and an engine's host cost, read from checked files.

GPU files belong to erhpc.plan.gpus (memory and timing of one card in one file); kernels and engine profiles lie in
erhpc/twin/data. A profile may also be a file that `python -m erhpc.calibrate` wrote: it holds shares of the one GPU
type it was calibrated on, which replace those of the GPU file. Every constant has a source and a range:
`load_constants` takes the values, `draw_constants` sets that the ranges allow. What holds for several kernels or
profiles alike stands once, in shared.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Any, get_type_hints

from erhpc.errors import ConfigError, require_choice, require_range
from erhpc.plan.gpus import find_gpu
from erhpc.twin.evidence import Evidence, read_evidence

DATA = Path(__file__).parent / "data"
DEFAULT_PROFILE = "vllm-v1-async"
UNITS = ("value", "fp8", "int8")
SHARES = ("compute_share", "kv_share")
"""Constants of a GPU that a calibrated profile may hold."""
Choose = Callable[[Evidence], float]
_LARGE_MESSAGE_BYTES = 2 * 1024**2
"""Above it vLLM leaves its own all-reduce kernel for NCCL."""
_BULK_MESSAGE_BYTES = 16 * 1024**2
_ABOUT = ("source", "basis")
"""Keys of `all_reduce` that are no number of GPUs."""


@dataclass(frozen=True, slots=True)
class Link:
    """One regime of an all-reduce: latency_s + bytes / bytes_per_s."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class AllReduce:
    """All-reduces over NVLink between a number of GPUs."""

    small: Link
    """vLLM's own kernel, for messages up to 2 MiB."""
    large: Link
    """NCCL."""
    bulk_bytes_per_s: float
    """Speed of what a message has beyond 16 MiB."""

    def time_s(self, message_bytes: float, least_latency_s: float = 0.0) -> float:
        """Seconds of one all-reduce."""
        link = self.small if message_bytes <= _LARGE_MESSAGE_BYTES else self.large
        bulk_bytes = max(0.0, message_bytes - _BULK_MESSAGE_BYTES)
        moved_s = (message_bytes - bulk_bytes) / link.bytes_per_s + bulk_bytes / self.bulk_bytes_per_s
        return max(link.latency_s, least_latency_s) + moved_s


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTiming:
    """Speed of one GPU type: data-sheet peaks and the shares of them that real kernels reach."""

    peak_flops: float
    """Dense bf16/fp16 FLOP/s."""
    peak_fp8_flops: float
    """Dense fp8 FLOP/s; 0: no fp8 units."""
    peak_int8_flops: float
    peak_vector_flops: float
    """fp16 FLOP/s outside the tensor cores."""
    bandwidth_bytes_per_s: float
    compute_share: float
    """Of peak_flops, in large matrix products."""
    weight_share: float
    """Of the bandwidth, when weights are read."""
    kv_share: float
    """Of the bandwidth, when the KV cache is read."""
    attention_share: float
    """Of peak_flops, in the attention of a prefill."""
    layer_s: float
    """Floor of a layer's small kernels (attention, norms, activation) within a CUDA graph."""
    eager_all_reduce_s: float
    """Least time of one all-reduce outside a CUDA graph."""
    all_reduce_factor: float
    """Multiplies the times of `all_reduce`."""
    all_reduce: Mapping[int, AllReduce]
    """By tensor-parallel size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How the matrices of the layers are stored and multiplied; erhpc/twin/data/kernels.toml says what each means."""

    name: str
    stored_as: str
    units: str
    fallback: str
    widen_rows: int
    tile_rows: int
    unpack_instructions: int
    row_instructions: int
    split_k: int
    torch_calls: int
    weight_share_factor: float
    compute_share_factor: float
    widen_share: float
    eager_call_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What an engine's host adds to a step; erhpc/twin/data/profiles.toml says what each means."""

    name: str
    overlaps: bool
    mixes_prefill: bool
    graph_max_seqs: int
    merge_max_seqs: int
    step_s: float
    tensor_parallel_s: float
    seq_s: float
    block_s: float
    gap_s: float
    request_s: float
    http_s: float
    frame_s: float
    kv_share_factor: float
    host_factor: float


_KINDS: dict[type, dict[str, Any]] = {kind: get_type_hints(kind) for kind in (Kernel, EngineProfile)}


@dataclass(frozen=True, slots=True)
class Constants:
    """Everything the step time needs beside the model's shape. Raises ConfigError for a number that is none."""

    gpu: GpuTiming
    kernel: Kernel
    profile: EngineProfile

    def __post_init__(self) -> None:
        for part in (self.gpu, self.kernel, self.profile):
            for key in fields(part):
                value = getattr(part, key.name)
                if isinstance(value, float) and not 0 <= value < float("inf"):
                    raise ConfigError(f"{type(part).__name__}.{key.name}={value} must be finite and at least 0.")


def central(evidence: Evidence) -> float:
    """The value itself: the choice for a point prediction."""
    return evidence.value


def load_constants(
    gpu: str, *, quantization: str | None, kernel: str | None = None, profile: str = DEFAULT_PROFILE,
    choose: Choose = central,
) -> Constants:  # fmt: skip
    """The constants of a GPU (name or file), kernel (None: the default of the quantization) and engine profile (too).

    Raises ConfigError for an unknown name, a wrong file, or a profile that was calibrated on another GPU type.
    """
    timing = load_gpu_timing(gpu, choose)
    shares: dict[str, Any] = {name: choose(evidence) for name, evidence in _read_shares(profile, gpu).items()}
    timing = replace(timing, **shares)
    return Constants(timing, load_kernel(kernel or find_default_kernel(quantization), timing, choose),
                     load_profile(profile, choose))  # fmt: skip


def draw_constants(
    rng: Random, count: int, gpu: str, *, quantization: str | None, kernel: str | None = None,
    profile: str = DEFAULT_PROFILE,
) -> list[Constants]:  # fmt: skip
    """`count` sets like `load_constants` gives, drawn from the evidence ranges: their predictions make an interval.

    A Latin hypercube: over the sets, every constant takes each part of its range once, so that few sets do.
    """
    require_range("count", count, 2)
    normal = NormalDist()
    deviations = [normal.inv_cdf((part + 0.5) / count) for part in range(count)]
    scale = (count / sum(deviation**2 for deviation in deviations)) ** 0.5
    deviations = [scale * deviation for deviation in deviations]
    shuffles: dict[int, list[float]] = {}

    def choose_part(number: int) -> Choose:
        position = 0

        def choose(evidence: Evidence) -> float:
            # Every set asks for the same constants in the same order: the position names the constant.
            nonlocal position
            if position not in shuffles:
                shuffles[position] = rng.sample(deviations, count)
            shuffle = shuffles[position]
            position += 1
            return evidence.at(shuffle[number])

        return choose

    return [
        load_constants(gpu, quantization=quantization, kernel=kernel, profile=profile, choose=choose_part(number))
        for number in range(count)
    ]


def load_gpu_timing(gpu: str, choose: Choose = central) -> GpuTiming:
    """Timing of a GPU type: a name of erhpc.plan.gpus or the path of a GPU file. Raises ConfigError."""
    content = find_gpu(gpu).timing
    timing, table = content.get("timing", {}), content.get("all_reduce", {})
    names = [field.name for field in fields(GpuTiming) if field.name != "all_reduce"]
    if not isinstance(timing, Mapping) or not isinstance(table, Mapping):
        raise ConfigError(f"cluster.gpu={gpu!r}: `timing` and `all_reduce` of its file must be tables.")
    unknown = sorted(set(timing) - set(names))
    if unknown:
        raise ConfigError(f"cluster.gpu={gpu!r}: timing.{unknown[0]} is not known. Allowed: {', '.join(names)}.")
    values = {name: choose(read_evidence(f"cluster.gpu={gpu!r}: timing.{name}", timing.get(name))) for name in names}
    zeros = [name for name in names if values[name] == 0 and name not in ("peak_fp8_flops", "peak_int8_flops")]
    if zeros:
        raise ConfigError(f"cluster.gpu={gpu!r}: timing.{zeros[0]} is 0. Allowed: numbers above 0.")
    links = {
        _read_ways(gpu, ways): _read_all_reduce(gpu, ways, raw) for ways, raw in table.items() if ways not in _ABOUT
    }
    return GpuTiming(**values, all_reduce=links)


def load_kernel(name: str, gpu: GpuTiming, choose: Choose = central) -> Kernel:
    """A kernel by name, or its fallback on a GPU without the units it needs. Raises ConfigError if unknown."""
    kernel: Kernel = _load(Kernel, "kernel", name, _read_data("kernels.toml"), choose)
    require_choice(f"kernel {name}: units", kernel.units, UNITS)
    peaks = {"value": gpu.peak_flops, "fp8": gpu.peak_fp8_flops, "int8": gpu.peak_int8_flops}
    if peaks[kernel.units] > 0:
        return kernel
    if not kernel.fallback:
        raise ConfigError(f"kernel {name} needs {kernel.units} units, which the GPU lacks. Take another kernel.")
    return load_kernel(kernel.fallback, gpu, choose)


def load_profile(name: str, choose: Choose = central) -> EngineProfile:
    """An engine profile by name or file. Raises ConfigError if unknown or wrong."""
    title, table = read_profile_table(name)
    loaded: EngineProfile = _load(EngineProfile, "engine profile", title, {title: table}, choose)
    return loaded


def read_profile_table(name: str) -> tuple[str, Mapping[str, Any]]:
    """Name and unread content of an engine profile: a shipped one, or the one of a file (ending in .toml).

    Raises:
        ConfigError: it is unknown, or the file does not hold one profile.
    """
    if not name.endswith(".toml"):
        require_choice("engine profile", name, known_profiles())
        return name, _read_data("profiles.toml")[name]
    path = Path(name).expanduser()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"engine profile {path} is no readable profile ({error}). Give a file that `python -m erhpc.calibrate` "
            f"wrote, or one of {', '.join(known_profiles())}."
        ) from error
    if len(content) != 1 or not all(isinstance(table, Mapping) for table in content.values()):
        raise ConfigError(
            f"engine profile {path} must hold one table, it holds {', '.join(content) or 'nothing'}. Give a file that "
            "`python -m erhpc.calibrate` wrote."
        )
    return next(iter(content.items()))


def read_profile_evidence(profile: str, gpu: str | None, names: Sequence[str]) -> dict[str, Evidence]:
    """What is known of some constants of a profile; of SHARES where `gpu` is given. Raises ConfigError."""
    title, table = read_profile_table(profile)
    found = {}
    for name in names:
        if name in SHARES and gpu is not None:
            shares = _read_shares(profile, gpu)
            raw = find_gpu(gpu).timing.get("timing", {}).get(name)
            found[name] = shares[name] if name in shares else read_evidence(f"cluster.gpu={gpu!r}: timing.{name}", raw)
        else:
            found[name] = read_constant(f"engine profile {title}: {name}", table.get(name))
    return found


def read_constant(where: str, raw: Any) -> Evidence:
    """Check one constant: given here, or `{ shared = NAME }` of erhpc/twin/data/shared.toml. Raises ConfigError."""
    if isinstance(raw, Mapping) and "shared" in raw:
        name, known = raw["shared"], _read_data("shared.toml")
        require_choice(f"{where}: shared", name, tuple(known))
        return read_evidence(f"{where}: {name} of shared.toml", known[name])
    return read_evidence(where, raw)


def find_default_kernel(quantization: str | None) -> str:
    """The kernel that serves a quantization unless another is named. Raises ConfigError if there is none."""
    kernels = _read_data("kernels.toml")
    for name, raw in kernels.items():
        if (quantization or "") in raw["default_for"]:
            return name
    known = [quantized for raw in kernels.values() for quantized in raw["default_for"] if quantized]
    raise ConfigError(f"quantization={quantization!r} has no kernel. Allowed: {', '.join(known)}, or name a kernel.")


def known_kernels() -> tuple[str, ...]:
    """Names of the shipped kernels."""
    return tuple(_read_data("kernels.toml"))


def known_profiles() -> tuple[str, ...]:
    """Names of the shipped engine profiles."""
    return tuple(_read_data("profiles.toml"))


def _read_shares(profile: str, gpu: str) -> dict[str, Evidence]:
    """The shares of a GPU that a calibrated profile holds, none for the others."""
    title, table = read_profile_table(profile)
    shares = {name: read_evidence(f"engine profile {title}: {name}", table[name]) for name in SHARES if table.get(name)}
    if shares and table.get("gpu") != find_gpu(gpu).name:
        raise ConfigError(
            f"engine profile {title} was calibrated on {table.get('gpu')!r}, and cluster.gpu={gpu!r}: shares of one "
            "GPU type say nothing of another. Calibrate on this one, or take another profile: "
            f"{', '.join(known_profiles())}."
        )
    return shares


@cache
def _read_data(name: str) -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads((DATA / name).read_text(encoding="utf-8"))


def _load(kind: type[Any], what: str, name: str, table: Mapping[str, Mapping[str, Any]], choose: Choose) -> Any:
    """Build a dataclass from a table: floats are constants with evidence, everything else stands as it is."""
    require_choice(what, name, tuple(table))
    values: dict[str, Any] = {"name": name}
    hints = _KINDS[kind]
    for key in [field.name for field in fields(kind) if field.name != "name"]:
        raw = table[name].get(key)
        if hints[key] is not float and type(raw) is not hints[key]:
            raise ConfigError(f"{what} {name}: {key}={raw!r} is no {hints[key].__name__}.")
        values[key] = choose(read_constant(f"{what} {name}: {key}", raw)) if hints[key] is float else raw
    return kind(**values)


def _read_ways(gpu: str, ways: str) -> int:
    if not ways.isdigit() or int(ways) < 2:
        raise ConfigError(f"cluster.gpu={gpu!r}: all_reduce.{ways} is no number of GPUs. Allowed: 2 and more.")
    return int(ways)


def _read_all_reduce(gpu: str, ways: str, raw: Any) -> AllReduce:
    table = raw if isinstance(raw, Mapping) else {}
    links = []
    for size in ("small", "large"):
        link = table.get(size)
        numbers = [link.get(key) if isinstance(link, Mapping) else None for key in ("latency_s", "bytes_per_s")]
        links.append(Link(*(_read_positive(f"cluster.gpu={gpu!r}: all_reduce.{ways}.{size}", n) for n in numbers)))
    bulk = _read_positive(f"cluster.gpu={gpu!r}: all_reduce.{ways}.bulk_bytes_per_s", table.get("bulk_bytes_per_s"))
    return AllReduce(links[0], links[1], bulk)


def _read_positive(where: str, number: Any) -> float:
    if isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < float("inf"):
        return float(number)
    raise ConfigError(
        f"{where} has {number!r}. Give numbers above 0: small and large = {{ latency_s, bytes_per_s }}, and "
        "bulk_bytes_per_s."
    )

"""An engine profile that was calibrated, as text of a file that `load_profile` and `load_constants` read.

Every constant that was fitted names the run as its source; a run that nobody measured says so in the profile's name,
in its head and in every such source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erhpc.twin.evidence import Evidence
from erhpc.twin.fitting import Fit
from erhpc.twin.hardware import SHARES, read_profile_table

_MEASURED_HEAD = "# An engine profile that `python -m erhpc.calibrate` fitted to a measurement.\n"
_OTHER_HEAD = (
    "# NOT MEASURED: an engine profile that `python -m erhpc.calibrate` fitted to {origin} results. It says what\n"
    "# those were made with, and nothing of a GPU.\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a calibration comes from."""

    kind: str
    """measured, emulated or predicted."""
    runs: Sequence[str]
    """Ids of the runs."""
    models: Sequence[str]
    gpu: str
    kernel: str
    version: str
    """Of erhpc."""
    date: str
    """ISO 8601."""

    @property
    def name(self) -> str:
        """Name of the profile."""
        return f"{self.kind}-{self.runs[0]}"

    @property
    def source(self) -> str:
        """Source of every constant that was fitted."""
        said = "" if self.kind == "measured" else f" ({self.kind.upper()}: not a measurement)"
        return f"calibrated from {', '.join(self.runs)}{said} with erhpc {self.version} on {self.date}"


def write_profile(fit: Fit, profile: str, origin: Origin) -> str:
    """TOML of the profile that was fitted, starting from `profile`; constants that were not fitted stay as they are."""
    _, table = read_profile_table(profile)
    fitted = {change.name: _show_evidence(change.after, origin.source) for change in fit.changes if not change.reason}
    head = _MEASURED_HEAD if origin.kind == "measured" else _OTHER_HEAD.format(origin=origin.kind)
    lines = [
        f"{head}# Use it with engine.profile=FILE and cluster.gpu={origin.gpu}.",
        "",
        f"[{json.dumps(origin.name)}]",
    ]
    shown = {key: raw for key, raw in table.items() if key not in ("calibration", "gpu")}
    for key, raw in shown.items():
        if key not in fitted:
            lines.append(f"{key} = {_show(raw)}")
        elif key not in SHARES:
            lines.append(f"{key} = {fitted[key]}")
    shares = {key: fitted[key] for key in SHARES if key in fitted}
    if shares or any(key in table for key in SHARES):
        lines.append(f"gpu = {json.dumps(origin.gpu)}")
        lines += [f"{key} = {text}" for key, text in shares.items()]
    lines += ["", f"[{json.dumps(origin.name)}.calibration]"]
    facts: dict[str, Any] = {
        "kind": origin.kind, "runs": list(origin.runs), "models": list(origin.models), "gpu": origin.gpu,
        "kernel": origin.kernel, "from_profile": profile, "erhpc": origin.version, "date": origin.date,
        "median_error_before": _median_error(fit, fit.errors_before),
        "median_error_after": _median_error(fit, fit.errors_after),
    }  # fmt: skip
    lines += [f"{key} = {_show(value)}" for key, value in facts.items()]
    return "\n".join(lines) + "\n"


def _median_error(fit: Fit, errors: Sequence[float]) -> float:
    """Of the rows that the fit did not use; of all where there are none."""
    held = [abs(error) for error, row in zip(errors, fit.rows, strict=True) if row.is_held_out]
    ordered = sorted(held or map(abs, errors))
    return round(ordered[len(ordered) // 2], 4)


def _show_evidence(evidence: Evidence, source: str) -> str:
    return _show(
        {"value": evidence.value, "low": evidence.low, "high": evidence.high, "basis": "calibrated", "source": source}
    )  # fmt: skip


def _show(raw: Any) -> str:
    """A value as TOML."""
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, str):
        return json.dumps(raw, ensure_ascii=False)
    if isinstance(raw, float):
        return f"{raw:.4g}" if "." in f"{raw:.4g}" or "e" in f"{raw:.4g}" else f"{raw:.1f}"
    if isinstance(raw, Mapping):
        return "{ " + ", ".join(f"{key} = {_show(value)}" for key, value in raw.items()) + " }"
    if isinstance(raw, Sequence):
        return "[" + ", ".join(map(_show, raw)) + "]"
    return str(raw)

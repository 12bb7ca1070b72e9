"""Every error a user can cause or meet, drawn once as a tree. Everyone may import this module.

    ErhpcError
    ├── ConfigError        a configuration value is unknown, out of range or contradicts another
    │   └── PlacementError the experts do not fit the cluster
    ├── InputError         a file the run needs is missing or malformed (prompts, artefact, model directory)
    ├── SubmitError        the scheduler refused the job
    ├── ProcessError       a process of a run could not be started, became no server, or died
    └── SchemaMismatch     results written by another version of erhpc

A message says what was given, where, what is allowed and what to do next.
"""

from __future__ import annotations


class ErhpcError(Exception):
    """Base of all errors whose message is meant for the user; verbs print it without a traceback."""


class ConfigError(ErhpcError):
    """A configuration value is unknown, out of range or contradicts another one."""


class PlacementError(ConfigError):
    """The experts of an experiment do not fit the nodes, GPUs, memory or ports they were given."""


class InputError(ErhpcError):
    """A file the run needs (prompts, artefact, model directory) is missing or malformed."""


class SubmitError(ErhpcError):
    """The scheduler refused the job, or cannot be reached."""


class ProcessError(ErhpcError):
    """A process of a run could not be started, did not become ready, or died."""


class SchemaMismatch(ErhpcError):
    """Results were written with a schema this version of erhpc does not read."""


def require_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`; the message names the key and lists the choices."""
    if value not in allowed:
        raise ConfigError(f"{key}={value!r} is not known. Allowed: {', '.join(allowed)}.")


def require_range(key: str, value: float, low: float, high: float | None = None) -> None:
    """Raise ConfigError unless low <= value (<= high when given); the message states the range."""
    if not (low <= value and (high is None or value <= high)):  # not-a-number is in no range
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{key}={value} is out of range. Allowed: {allowed}.")

"""Whether routing by prefix can be of use in a run. Pure."""

from __future__ import annotations

from erhpc.config import ExperimentConfig

RULE = "prefix_affinity"


def note_affinity(experiment: ExperimentConfig, engine: str) -> str | None:
    """What to say of `prefix_affinity` where no engine keeps the prefixes that it brings together; None: nothing."""
    router = experiment.router
    used = [name for name in ("policy", "replica_policy") if getattr(router, name) == RULE]
    if not used or router.policy == "none" or (engine == "vllm" and experiment.engine.prefix_caching):
        return None
    keys = " and ".join(f"router.{name}" for name in used)
    if engine == "emulated":
        return f"{keys}={RULE} gains nothing here: emulated experts have no prefix cache. Leave it for engine=vllm."
    return (
        f"{keys}={RULE} gains nothing here: engine.prefix_caching=false, so no replica keeps a prefix. "
        f"Set engine.prefix_caching=true, or another {keys}."
    )

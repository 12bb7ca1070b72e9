"""How the replica of a spec is served: the same model of step times and limits that predictions use. Pure."""

from __future__ import annotations

from erhpc.plan.specs import EmulatedExpertSpec
from erhpc.twin.serving import Serving, describe_serving


def serve_as(spec: EmulatedExpertSpec) -> Serving:
    """What decides when its tokens come. Raises ConfigError for what cannot be served (see `describe_serving`)."""
    return describe_serving(spec, gpu=spec.gpu, profile=spec.profile, kv_capacity_tokens=spec.kv_capacity_tokens)

"""What is particular about emulated experts in a plan: which share a process, and which levels are rehearsals. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from erhpc.config import EngineConfig, FaultConfig
from erhpc.plan.plan import PlannedReplica

Numbered = tuple[PlannedReplica, int]
"""A replica and its port."""


def group_emulated(
    replicas: Sequence[Numbered], num_cores: int | None, faults: Sequence[FaultConfig]
) -> list[list[Numbered]]:
    """Which replicas share a process: none, unless a node has more of them than its `num_cores` (None: enough cores).

    Half the cores are then left to gateway and clients. A replica that is to crash takes nobody along.
    """
    crashing = [fault for fault in faults if fault.kind == "crash"]
    groups: list[list[Numbered]] = []
    nodes: dict[int, list[Numbered]] = {}
    for replica, port in replicas:
        if any(fault.hits(replica.replica) for fault in crashing):
            groups.append([(replica, port)])
        else:
            nodes.setdefault(replica.legs[0].node, []).append((replica, port))
    # A run on one machine has all its nodes there.
    num_cores = len(replicas) if num_cores is None else num_cores
    is_crowded = len(replicas) > num_cores
    for members in nodes.values():
        share = max(1, num_cores // (2 * len(nodes))) if is_crowded else len(members)
        groups += [members[first::share] for first in range(min(share, len(members)))]
    return sorted(groups, key=lambda group: group[0][1])


def explain_rehearsal(engine: EngineConfig) -> list[str]:
    """Why no level of emulated experts that are served so is to be trusted; empty if nothing speaks against them."""
    reasons = []
    if engine.speedup != 1:
        reasons.append(f"rehearsal: the time of the emulated experts runs {engine.speedup:g} times as fast")
    if engine.faults:
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in engine.faults))
        reasons.append(f"rehearsal: engine.faults ({kinds})")
    return reasons


def note_rehearsal(engine: EngineConfig, *, is_emulated: bool) -> str | None:
    """What a plan says of it aloud; None if there is nothing to say."""
    reasons = explain_rehearsal(engine)
    if not reasons:
        return None
    if not is_emulated:
        return "engine.speedup and engine.faults are for emulated experts only: vLLM runs as ever."
    return f"{'; '.join(reasons)}. Every level will be marked invalid."

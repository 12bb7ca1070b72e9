"""What agents and the coordinator say to each other: one JSON line each. Plain data, no sockets."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

ProcessPhase = Literal["started", "ready", "failed", "exited", "stopped"]


class Hello(msgspec.Struct, tag="hello", kw_only=True, frozen=True):
    """Agent: I am here."""

    rank: int
    node: str
    address: str
    coordinator_address: str
    """Where this agent reached rank 0: the address other nodes know it by."""
    facts: dict[str, Any]


class Survey(msgspec.Struct, tag="survey", kw_only=True, frozen=True):
    """Coordinator: which of these port bands are free for your processes?"""

    bands: list[int]


class FreeBands(msgspec.Struct, tag="free_bands", kw_only=True, frozen=True):
    """Agent: these are."""

    rank: int
    bands: list[int]


class Assign(msgspec.Struct, tag="assign", kw_only=True, frozen=True):
    """Coordinator: everybody's address, and the port band of this run."""

    addresses: list[str]
    band: int


class Start(msgspec.Struct, tag="start", kw_only=True, frozen=True):
    """Coordinator: start these planned processes."""

    names: list[str]


class Stop(msgspec.Struct, tag="stop", kw_only=True, frozen=True):
    """Coordinator: stop these processes; none named means all, and then the agent is done."""

    names: list[str] = []


class Input(msgspec.Struct, tag="input", kw_only=True, frozen=True):
    """Coordinator: write this line to the stdin of a client."""

    name: str
    line: str


class ProcessReport(msgspec.Struct, tag="process", kw_only=True, frozen=True):
    """Agent: a process changed its phase."""

    rank: int
    name: str
    phase: ProcessPhase
    detail: str = ""
    seconds: float = 0.0
    exit_code: int | None = None


class Output(msgspec.Struct, tag="output", kw_only=True, frozen=True):
    """Agent: a client printed a line."""

    name: str
    line: str


class Interrupted(msgspec.Struct, tag="interrupted", kw_only=True, frozen=True):
    """Agent: this node was told to stop (scancel, time limit)."""

    rank: int


class Done(msgspec.Struct, tag="done", kw_only=True, frozen=True):
    """Agent: I end; every process of this node is gone but those that `leftovers` names."""

    rank: int
    leftovers: list[str]
    error: str = ""
    """Why this node cannot take part any longer; empty when it was told to stop."""


AgentMessage = Hello | FreeBands | ProcessReport | Output | Interrupted | Done
CoordinatorMessage = Survey | Assign | Start | Stop | Input

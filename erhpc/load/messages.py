"""What the conductor of a level and its client processes say to each other: one JSON object per line.

Commands go to a client's stdin, reports come from its stdout. Times are nanoseconds of the client's own monotonic
clock, so that a client needs to know nothing of other clocks.
"""

from __future__ import annotations

import msgspec

from erhpc.results.record import Phase


class AskClock(msgspec.Struct, tag="clock", frozen=True):
    """Conductor: what does your clock say?"""

    number: int


class Begin(msgspec.Struct, tag="begin", frozen=True, kw_only=True):
    """Conductor: this is the level; begin at the given time."""

    at_ns: int
    users: int | None = None
    """Of all client processes together; None in an open loop."""
    rate_per_s: float | None = None
    """Of all client processes together; None in a closed loop, or where a trace is replayed at its own rate."""
    clock_offset_ns: int = 0
    """Your clock minus mine, for the records."""
    clock_uncertainty_ns: int = 0


class OpenWindow(msgspec.Struct, tag="open", frozen=True, kw_only=True):
    """Conductor: the measuring window begins at the given time."""

    at_ns: int
    steady: bool | None
    """Whether the load was steady by then; None if it is not meant to be, or nothing can be told so early."""
    cut: bool
    """Not every user had finished a request."""


class CloseWindow(msgspec.Struct, tag="close", frozen=True, kw_only=True):
    """Conductor: the measuring window ends at the given time; go on sending until all clients are drained."""

    at_ns: int


class End(msgspec.Struct, tag="end", frozen=True):
    """Conductor: cut what is still in flight, write your part, and end."""


Command = AskClock | Begin | OpenWindow | CloseWindow | End


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Client: prompts are read, the load can begin."""


class TellClock(msgspec.Struct, tag="clock", frozen=True):
    """Client: my clock said this."""

    number: int
    now_ns: int


class Tally(msgspec.Struct, tag="tally", frozen=True, kw_only=True):
    """Client, twice a second: how it goes, counted since the level began."""

    phase: Phase
    elapsed_s: float
    in_flight: int
    requests_ok: int
    requests_failed: int
    tokens: int
    """Pieces of answers that came in: about one per token."""
    measured: int
    """Requests sent in the window that have ended."""
    ttft_p50_s: float | None
    """Median over recent requests; None before the first token."""
    all_finished: bool
    """No user is there who has not finished a request; says little in an open loop, where somebody always comes."""
    all_left: bool
    """Nothing is in flight and nothing more will be sent: the trace has ended, or there is no user."""
    drained: bool
    """The window is over, and every request that was due before its end has ended."""
    commonest_failure: str | None = None


Report = Ready | TellClock | Tally

_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def encode_line(message: Command | Report) -> bytes:
    """One line, its end included."""
    return msgspec.json.encode(message) + b"\n"


def parse_command(line: bytes) -> Command:
    """Read a line of a conductor. Raises msgspec.DecodeError if it is none."""
    return _commands.decode(line)


def parse_report(line: bytes) -> Report | None:
    """Read a line of a client; None if it is something else that was printed."""
    try:
        return _reports.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None

"""The kinds of load that every gateway is put under, and their names."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Phase:
    """One kind of load: users who ask again as soon as they have an answer, or `once` all at the same time."""

    name: str
    users: int
    tokens: int
    ttft_ms: float
    """Of the mock, as the gap."""
    gap_ms: float
    ramp_s: float = 0.0
    """Within which users begin, evenly; as long as one answer lasts, they stay evenly spread."""
    seconds: float = 0.0
    """Measured, after the ramp."""
    once: bool = False

    def limited(self, max_users: int | None, seconds: float | None) -> Phase:
        """With no more users, measured for as long as asked; None changes nothing."""
        users = self.users if max_users is None else min(self.users, max_users)
        if seconds is None or self.once:
            return replace(self, users=users)
        return replace(self, users=users, seconds=seconds, ramp_s=min(self.ramp_s, seconds))


AT_ONCE, STREAMS, REQUESTS, ONE, HUNDRED = "at once", "streams", "requests", "1 user", "100 users"
PHASES = (
    # First, so that a gateway has no connection to the mock yet.
    # The driver reads late while it sends, and a read has the stamp of its last token: so the next one comes late.
    Phase(AT_ONCE, users=1000, tokens=3, ttft_ms=50, gap_ms=500, once=True),
    # 128 tokens last 6.4 s: 20,000 frames/s come with 155 requests/s.
    Phase(STREAMS, users=1000, tokens=128, ttft_ms=50, gap_ms=50, ramp_s=6.5, seconds=5),
    # So many that a gateway which lets single answers wait is busy too.
    Phase(REQUESTS, users=256, tokens=1, ttft_ms=0, gap_ms=1, ramp_s=0.5, seconds=4),
    Phase(ONE, users=1, tokens=1, ttft_ms=50, gap_ms=1, seconds=4),
    Phase(HUNDRED, users=100, tokens=20, ttft_ms=50, gap_ms=50, ramp_s=1, seconds=4),
)

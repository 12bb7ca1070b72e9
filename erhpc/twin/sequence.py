"""What a simulated replica keeps of a request; `replica` alone changes it.

A plain object with slots, not a dataclass: a level has a hundred thousand of them.
"""

from __future__ import annotations

OUT = -1
"""The order of a sequence that is not admitted."""


class Sequence:
    """A request, from the moment it is sent. Steps are numbered from 1, per replica."""

    __slots__ = (
        "answer",
        "base",
        "begun",
        "blocks",
        "cached",
        "computed",
        "generated",
        "index",
        "last",
        "order",
        "pool",
        "prompt",
        "replica",
        "row",
        "sent_s",
        "spells",
        "user",
    )

    def __init__(
        self, sent_s: float, row: int, user: int, index: int, pool: int, prompt: int, answer: int, cached: int
    ) -> None:
        self.sent_s = sent_s
        self.row = row
        self.user = user
        self.index = index
        """Which request of its user it is, from 0."""
        self.pool = pool
        self.replica = -1
        """Where it was routed to; -1: not yet."""
        self.prompt = prompt
        self.answer = answer
        self.cached = cached
        self.generated = 0
        """Answer tokens by the time it was last admitted."""
        self.order = OUT
        """Which admission of the replica it was, from 0."""
        self.computed = 0
        """Tokens with a KV entry, and their blocks, while its prompt is computed; later they follow from `base`."""
        self.blocks = 0
        self.base = 0
        """Computed tokens after step s of a decoding sequence, minus s."""
        self.begun = 0
        """The first step that yielded a token since it was admitted, 0: none; `last` yields its last token."""
        self.last = 0
        self.spells: list[tuple[int, int]] | None = None
        """First and last of the steps that yielded tokens before it was preempted; None: it never was."""

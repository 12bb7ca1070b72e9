"""Work that many connections bring at once, done in slices, so that everything else goes on in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Action = Callable[[], None]


class Slices:
    """Does at most `size` actions in a turn of the event loop, in the order in which they were given.

    `call_soon` has its argument called in the next turn.
    """

    def __init__(self, size: int, call_soon: Callable[[Action], object]) -> None:
        self._size = size
        self._call_soon = call_soon
        self._num_done = 0
        """In this turn."""
        self._left: deque[Action] = deque()

    def do(self, action: Action) -> None:
        """Do `action`: now, or in a later turn if this one has had its slice."""
        if not self._num_done:
            self._call_soon(self._begin_turn)
        if self._num_done < self._size and not self._left:
            self._num_done += 1
            action()
        else:
            self._left.append(action)

    def _begin_turn(self) -> None:
        self._num_done = min(self._size, len(self._left))
        if self._num_done:
            self._call_soon(self._begin_turn)
        for _ in range(self._num_done):
            self._left.popleft()()

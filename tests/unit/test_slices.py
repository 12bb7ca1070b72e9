"""Slices of work on a loop whose turns the test takes."""

from __future__ import annotations

from collections import deque
from functools import partial

import pytest

from erhpc.gateway.slices import Action, Slices


class Loop:
    """An event loop that does nothing but take turns."""

    def __init__(self) -> None:
        self.soon: deque[Action] = deque()

    def turn(self) -> None:
        for _ in range(len(self.soon)):
            self.soon.popleft()()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_what_comes_at_once_is_done_in_slices_and_in_order(loop: Loop):
    done: list[int] = []
    slices = Slices(4, loop.soon.append)
    for number in range(10):
        slices.do(partial(done.append, number))
    seen = [len(done)]
    while loop.soon:
        loop.turn()
        seen.append(len(done))
    assert seen == [4, 8, 10, 10]
    assert done == list(range(10))


def test_what_comes_while_others_wait_goes_behind_them(loop: Loop):
    done: list[str] = []
    slices = Slices(1, loop.soon.append)
    slices.do(partial(done.append, "first"))
    slices.do(lambda: (done.append("second"), slices.do(partial(done.append, "fourth"))))
    slices.do(partial(done.append, "third"))
    while loop.soon:
        loop.turn()
    assert done == ["first", "second", "third", "fourth"]


def test_what_comes_in_different_turns_is_done_at_once(loop: Loop):
    done: list[int] = []
    slices = Slices(1, loop.soon.append)
    for number in range(3):
        slices.do(partial(done.append, number))
        assert done[-1] == number
        loop.turn()
    assert not loop.soon


def test_an_action_that_fails_holds_up_no_other(loop: Loop):
    done: list[int] = []
    slices = Slices(2, loop.soon.append)
    for action in (partial(done.append, 0), partial(done.append, 1), lambda: 1 / 0, partial(done.append, 2)):
        slices.do(action)
    with pytest.raises(ZeroDivisionError):
        loop.turn()
    loop.turn()
    assert done == [0, 1, 2]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.gateway.admission import Admission, Overloaded, Ticket, Turn


def nothing() -> None:
    pass


def ask(admission: Admission, number: int, now_s: float = 0.0) -> list[Ticket]:
    return [admission.ask(nothing, now_s) for _ in range(number)]


def turns(tickets: list[Ticket]) -> list[str]:
    return [ticket.turn.value for ticket in tickets]


def test_as_many_as_there_are_places_are_admitted_the_next_wait_and_more_are_refused():
    admission = Admission(lambda: 2, 1, 10)
    assert turns(ask(admission, 3)) == ["admitted", "admitted", "waiting"]
    with pytest.raises(Overloaded):
        ask(admission, 1)


def test_whoever_has_waited_longest_gets_the_place_that_is_left():
    admission = Admission(lambda: 1, 3, 10)
    first, second, third, fourth = ask(admission, 4)
    third.leave()
    first.leave()
    assert turns([first, second, third, fourth]) == ["over", "admitted", "over", "waiting"]
    second.leave()
    assert fourth.turn is Turn.ADMITTED


def test_whoever_waits_too_long_is_turned_away_and_told():
    told: list[str] = []
    admission = Admission(lambda: 1, 2, 10)
    [first] = ask(admission, 1)
    late = admission.ask(lambda: told.append(late.turn.value), 1.0)
    later = admission.ask(lambda: told.append(later.turn.value), 2.0)
    admission.expire(11.5)
    assert told == ["expired"]
    first.leave()
    assert told == ["expired", "admitted"]
    late.leave()
    assert (admission.placed.value, admission.waiting.value) == (1, 0)


def test_once_it_is_closed_whoever_waits_or_asks_is_turned_away_and_places_are_kept():
    told: list[str] = []
    admission = Admission(lambda: 1, 3, 10)
    [first] = ask(admission, 1)
    waiting = admission.ask(lambda: told.append(waiting.turn.value), 1.0)
    ask(admission, 1)[0].leave()
    admission.close()
    assert (told, first.turn) == (["expired"], Turn.ADMITTED)
    with pytest.raises(Overloaded):
        ask(admission, 1)
    first.leave()
    admission.admit()
    with pytest.raises(Overloaded):
        ask(admission, 1)
    assert (admission.placed.value, admission.waiting.value) == (0, 0)


def test_leaving_twice_gives_one_place_back():
    admission = Admission(lambda: 1, 2, 10)
    first, second, third = ask(admission, 3)
    first.leave()
    first.leave()
    assert turns([second, third]) == ["admitted", "waiting"]


@given(st.lists(st.tuples(st.sampled_from(["ask", "leave", "expire"]), st.integers(0, 30)), max_size=80))
def test_the_books_agree_with_the_tickets_whatever_happens(steps: list[tuple[str, int]]):
    admission = Admission(lambda: 3, 4, 5)
    tickets: list[Ticket] = []
    for now_s, (step, number) in enumerate(steps):
        if step == "ask":
            try:
                tickets.append(admission.ask(nothing, now_s))
            except Overloaded:
                assert admission.waiting.value == 4
        elif step == "leave" and tickets:
            tickets[number % len(tickets)].leave()
        else:
            admission.expire(now_s)
        standing = turns(tickets)
        assert admission.placed.value == standing.count("admitted") <= 3
        assert admission.waiting.value == standing.count("waiting") <= 4
        assert standing.count("waiting") == 0 or standing.count("admitted") == 3

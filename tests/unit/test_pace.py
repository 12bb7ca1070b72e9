from __future__ import annotations

import pytest

from erhpc.client.pace import BUSY_NS, LONGEST_REST_MS, Pace

MS = 1_000_000


def pace_of(gap_ms: float, num_gaps: int = 1000) -> Pace:
    pace = Pace()
    for _ in range(num_gaps):
        pace.note_gap(round(gap_ms * MS))
    pace.rest_ms(0, is_full=False, is_empty=False)
    return pace


def rest_ms(pace: Pace, now_ns: int = 2 * MS) -> int:
    return pace.rest_ms(now_ns, is_full=False, is_empty=False)


@pytest.mark.parametrize(("gap_ms", "expected_ms"), [(4, 0), (7.9, 0), (8.1, 1), (20, 2), (500, LONGEST_REST_MS)])
def test_a_rest_is_an_eighth_of_the_gap_in_whole_milliseconds(gap_ms: float, expected_ms: int):
    assert rest_ms(pace_of(gap_ms)) == expected_ms


def test_nobody_rests_before_gaps_are_known():
    assert rest_ms(Pace()) == 0


def test_nobody_rests_without_load():
    assert rest_ms(pace_of(20), BUSY_NS + 1) == 0


def test_a_look_that_found_nothing_or_not_all_is_followed_at_once():
    pace = pace_of(20)
    assert pace.rest_ms(MS, is_full=False, is_empty=True) == 0
    assert pace.rest_ms(2 * MS, is_full=True, is_empty=False) == 0
    assert rest_ms(pace, 3 * MS) == 2


def test_a_server_that_grows_faster_is_followed_within_some_gaps():
    pace = pace_of(40)
    for _ in range(20):
        pace.note_gap(5 * MS)
    assert rest_ms(pace) == 0


def test_the_short_ones_of_uneven_gaps_decide():
    pace = Pace()
    for number in range(1000):
        pace.note_gap((2 if number % 4 == 0 else 30) * MS)
    assert rest_ms(pace) == 0


@pytest.mark.parametrize(("gap_ms", "expected_ms"), [(2, 1), (20, 2.5), (40, 5), (500, 8)])
def test_what_was_read_is_taken_apart_for_an_eighth_of_the_gap(gap_ms: float, expected_ms: float):
    assert pace_of(gap_ms).look_ns == pytest.approx(expected_ms * MS, rel=0.01)

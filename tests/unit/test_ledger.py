"""The counts that the processes of a gateway share."""

from __future__ import annotations

import mmap
import os

import pytest

from erhpc.gateway.ledger import Ledger

KEYS = [("requests", "math", "ok"), ("requests", "math", "lost"), ("queued",)]


def rows(number: int) -> list[Ledger]:
    """Ledgers of as many processes over the same memory."""
    memory = bytearray(Ledger.size_bytes(len(KEYS), number))
    return [Ledger(KEYS, num_rows=number, row=row, memory=memory) for row in range(number)]


def test_each_process_counts_for_itself_and_all_see_the_sum():
    first, second, third = rows(3)
    first.count(KEYS[0]).add(5)
    second.count(KEYS[0]).add()
    second.count(KEYS[0]).add(-3)
    assert [ledger.count(KEYS[0]).value for ledger in (first, second, third)] == [5, -2, 0]
    assert {ledger.count(KEYS[0]).total for ledger in (first, second, third)} == {3}
    assert third.total(KEYS[0]) == 3
    assert third.by_row(KEYS[0]) == [5, -2, 0]


def test_counts_do_not_run_into_each_other():
    ledgers = rows(2)
    numbers = iter(range(1, 100))
    written = {}
    for row, ledger in enumerate(ledgers):
        for key in KEYS:
            written[row, key] = next(numbers)
            ledger.count(key).value = written[row, key]
    assert {(row, key): ledgers[row].count(key).value for row, key in written} == written


def test_a_process_may_write_a_count_of_another():
    first, second = rows(2)
    first.count(KEYS[2], row=1).add(7)
    assert second.count(KEYS[2]).value == 7
    assert first.count(KEYS[2]).value == 0


def test_a_new_process_goes_on_with_the_row_of_the_one_that_died():
    memory = bytearray(Ledger.size_bytes(len(KEYS), 2))
    Ledger(KEYS, num_rows=2, row=1, memory=memory).count(KEYS[0]).add(4)
    successor = Ledger(KEYS, num_rows=2, row=1, memory=memory).count(KEYS[0])
    successor.add()
    assert (successor.value, successor.total) == (5, 5)


def test_two_maps_of_the_same_file_show_the_same_counts():
    descriptor = os.memfd_create("ledger")
    try:
        size_bytes = Ledger.size_bytes(len(KEYS), 2)
        os.truncate(descriptor, size_bytes)
        maps = [mmap.mmap(descriptor, size_bytes) for _ in range(2)]
        first, second = (Ledger(KEYS, num_rows=2, row=row, memory=maps[row]) for row in range(2))
        first.count(KEYS[1]).add(2**40)
        assert second.count(KEYS[1]).total == 2**40
    finally:
        os.close(descriptor)


def test_a_count_that_was_not_named_is_an_error_and_names_can_be_listed():
    ledger = Ledger(KEYS)
    assert ledger.keys("requests") == KEYS[:2]
    assert ledger.keys("nothing") == []
    with pytest.raises(KeyError):
        ledger.count(("requests", "code", "ok"))

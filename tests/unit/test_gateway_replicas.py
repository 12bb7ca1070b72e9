"""When a replica gets requests: failures, probes, draining, and what several processes see of it."""

from __future__ import annotations

import pytest

from erhpc.gateway.errors import Outcome, broken, silent, unreachable
from erhpc.gateway.ledger import Ledger
from erhpc.gateway.metrics import KEY_IN_FLIGHT, PLACED, REQUESTS, WAITING, name_ledger_cells
from erhpc.gateway.prober import BAD_PROBES, GOOD_PROBES, SILENCE_S, Watch
from erhpc.gateway.replicas import CLOSED, DRAINING, FAILURES_TO_OPEN, OPEN, OPENED, Replica, find_missing_experts
from erhpc.gateway.supervisor import settle
from erhpc.plan.specs import Endpoint

NOW_NS = 1_000_000_000_000
LATER_NS = NOW_NS + round((SILENCE_S + 1) * 1e9)
REFUSED = unreachable("math-0", ConnectionRefusedError(), 111)
OUT_OF_FILES = unreachable("math-0", OSError(), 24)


def make_endpoints(*names: str) -> list[Endpoint]:
    return [Endpoint(replica=name, expert=name.partition("-")[0], model="m", url="") for name in names]


def make_ledgers(endpoints: list[Endpoint], number: int) -> list[Ledger]:
    cells = name_ledger_cells(endpoints)
    memory = bytearray(Ledger.size_bytes(len(cells), number))
    return [Ledger(cells, num_rows=number, row=row, memory=memory) for row in range(number)]


@pytest.fixture
def replicas() -> list[Replica]:
    """One replica, as three processes see it."""
    endpoints = make_endpoints("math-0")
    return [Replica(endpoints[0], ledger) for ledger in make_ledgers(endpoints, 3)]


def test_experts_without_a_live_replica_are_missing():
    endpoints = make_endpoints("a-0", "b-0", "a-1", "b-1")
    [ledger] = make_ledgers(endpoints, 1)
    fleet = [Replica(endpoint, ledger) for endpoint in endpoints]
    assert find_missing_experts(fleet) == []
    fleet[0].close_off()
    fleet[1].is_draining = True
    fleet[2].close_off()
    assert find_missing_experts(fleet) == ["a"]


def test_what_one_process_finds_all_see(replicas: list[Replica]):
    first, second, third = replicas
    first.begin_request(NOW_NS)
    second.begin_request(NOW_NS)
    assert third.in_flight == 2
    second.note_failure(REFUSED)
    assert [replica.state for replica in replicas] == [OPEN] * 3
    assert not first.live
    third.let_in()
    assert [replica.live for replica in replicas] == [True] * 3
    first.is_draining = True
    assert second.state == DRAINING
    second.note_heard(NOW_NS)
    assert third.heard_ns == NOW_NS


def test_failures_in_different_processes_add_up_and_an_answer_anywhere_starts_anew(replicas: list[Replica]):
    for number in range(2 * FAILURES_TO_OPEN):
        replicas[number % 3].note_failure(broken("math-0"))
        if number % 2:
            replicas[(number + 1) % 3].note_answer()
    assert replicas[0].live
    for replica in replicas[:FAILURES_TO_OPEN]:
        assert replica.live
        replica.note_failure(broken("math-0"))
    assert not replicas[0].live


def test_a_replica_that_comes_back_has_all_its_tries_again(replicas: list[Replica]):
    replica = replicas[0]
    for _ in range(FAILURES_TO_OPEN):
        replica.note_failure(silent("math-0", 1))
    assert not replica.live
    replica.let_in()
    for _ in range(FAILURES_TO_OPEN - 1):
        replica.note_failure(silent("math-0", 1))
    assert replica.live


def test_being_short_of_files_here_is_not_held_against_a_replica(replicas: list[Replica]):
    for _ in range(10):
        replicas[0].note_failure(OUT_OF_FILES)
    assert replicas[0].live


def test_closing_off_what_is_closed_off_is_counted_once():
    endpoints = make_endpoints("math-0")
    ledgers = make_ledgers(endpoints, 2)
    for ledger in ledgers:
        Replica(endpoints[0], ledger).close_off()
    assert ledgers[0].total((OPENED, "math-0")) == 1


def test_a_drained_replica_that_is_down_counts_as_down_and_drains_on_when_it_is_well(replicas: list[Replica]):
    replica = replicas[0]
    replica.is_draining = True
    replica.close_off()
    assert replica.state == OPEN
    replica.let_in()
    assert (replica.state, replica.live) == (DRAINING, False)
    replica.is_draining = False
    assert (replica.state, replica.live) == (CLOSED, True)


# Probes


def test_a_replica_that_is_down_is_let_in_after_two_good_probes_in_a_row(replicas: list[Replica]):
    replica, watch = replicas[0], Watch(replicas[0])
    replica.close_off()
    for is_well in (True, False, True, False, False, True):
        assert watch.is_due(NOW_NS)
        watch.note(is_well=is_well)
        assert not replica.live
    assert GOOD_PROBES == 2
    watch.note(is_well=True)
    assert replica.live


def test_a_silent_replica_is_closed_off_after_three_bad_probes_in_a_row(replicas: list[Replica]):
    replica, watch = replicas[0], Watch(replicas[0])
    replica.begin_request(NOW_NS)
    replica.note_heard(NOW_NS)
    assert BAD_PROBES == 3
    for is_well in (False, False, True, False, False):
        assert watch.is_due(LATER_NS)
        watch.note(is_well=is_well)
        assert replica.live
    watch.note(is_well=False)
    assert replica.is_down


def test_a_replica_that_is_heard_between_bad_probes_stays_however_many_there_are(replicas: list[Replica]):
    replica, watch = replicas[0], Watch(replicas[0])
    replica.begin_request(NOW_NS)
    for number in range(10):
        now_ns = LATER_NS * (number + 1)
        for _ in range(BAD_PROBES - 1):
            assert watch.is_due(now_ns)
            watch.note(is_well=False)
        replica.note_heard(now_ns)
        assert not watch.is_due(now_ns)
    assert replica.live


def test_the_silence_of_a_replica_counts_from_when_it_has_something_to_answer(replicas: list[Replica]):
    replica, watch = replicas[0], Watch(replicas[0])
    replica.note_heard(NOW_NS)
    replica.begin_request(LATER_NS)
    assert not watch.is_due(LATER_NS)
    later_ns = 2 * LATER_NS - NOW_NS
    replicas[1].begin_request(later_ns)  # one more makes no difference
    assert watch.is_due(later_ns)


@pytest.mark.parametrize(("in_flight", "heard_ns"), [(0, 0), (1, LATER_NS), (1, LATER_NS - 1_000_000_000)])
def test_a_replica_that_has_nothing_to_do_or_was_heard_is_not_probed(
    replicas: list[Replica], in_flight: int, heard_ns: int
):
    for _ in range(in_flight):
        replicas[0].begin_request(NOW_NS)
    replicas[0].note_heard(heard_ns)
    assert not Watch(replicas[0]).is_due(LATER_NS)


def test_bad_probes_from_before_it_went_down_do_not_count_when_it_is_back(replicas: list[Replica]):
    replica, watch = replicas[0], Watch(replicas[0])
    replica.begin_request(NOW_NS)
    for _ in range(BAD_PROBES):
        watch.note(is_well=False)
    for _ in range(GOOD_PROBES):
        watch.note(is_well=True)
    assert replica.live
    for _ in range(BAD_PROBES - 1):
        watch.note(is_well=False)
    assert replica.live


# A process that has died


def test_the_books_of_a_process_that_died_are_closed_and_those_of_the_others_are_not():
    endpoints = make_endpoints("math-0", "code-0")
    dead, alive, overseer = make_ledgers(endpoints, 3)
    for ledger in (dead, alive):
        math, code = (Replica(endpoint, ledger) for endpoint in endpoints)
        for replica in (math, math, code):
            replica.begin_request(NOW_NS)
        ledger.count(("erhpc_admitted",)).add(5)  # two of them are being read
        ledger.count(("erhpc_queued",)).add(4)
        ledger.count(("erhpc_processes",)).value = 1
        ledger.count((PLACED, "math")).add(2)
        ledger.count((WAITING, "math")).add(1)
        ledger.count((KEY_IN_FLIGHT, "9")).add(3)
        ledger.count((REQUESTS, "math", "math-0", Outcome.OK)).add(10)

    settle(dead, endpoints)

    gauges = [("erhpc_admitted",), ("erhpc_queued",), ("erhpc_processes",), ("in flight", "math-0"),
              ("in flight", "code-0"), (PLACED, "math"), (WAITING, "math"), (KEY_IN_FLIGHT, "9")]  # fmt: skip
    assert [overseer.by_row(key)[0] for key in gauges] == [0] * len(gauges)
    assert [overseer.by_row(key)[1] for key in gauges] == [5, 4, 1, 2, 1, 2, 1, 3]
    lost = {key[2]: overseer.by_row(key) for key in overseer.keys(REQUESTS) if key[3] == Outcome.LOST}
    assert lost["math-0"] == [2, 0, 0]
    assert lost["code-0"] == [1, 0, 0]
    assert overseer.by_row((REQUESTS, "", "", Outcome.LOST)) == [2 + 4, 0, 0]
    assert overseer.by_row((REQUESTS, "math", "math-0", Outcome.OK)) == [10, 10, 0]


def test_a_process_that_died_idle_has_lost_nothing():
    endpoints = make_endpoints("math-0")
    dead, _ = make_ledgers(endpoints, 2)
    dead.count(("erhpc_processes",)).value = 1
    settle(dead, endpoints)
    assert [dead.count(key).value for key in dead.keys(REQUESTS) if key[3] == Outcome.LOST] == [0] * 3

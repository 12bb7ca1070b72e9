"""What a person sees of a run."""

from __future__ import annotations

import io

from rich.console import Console

from erhpc.cluster.queue import QueueState
from erhpc.cluster.status import LevelResult, ReplicaStatus, RunStatus
from erhpc.cluster.view import (
    LineView,
    LiveView,
    describe_level,
    describe_progress,
    describe_state,
    draw_status,
    make_view,
)

RUNNING = QueueState("RUNNING")
PROGRESS = {
    "users": 10,
    "phase": "measure",
    "elapsed_s": 12.3,
    "output_tokens_per_s": 4321.9,
    "ttft_p50_s": None,
    "in_flight": 9,
    "requests_failed": 1,
}


def console(**options):
    return Console(file=io.StringIO(), width=200, **options)


def level(number=0, **changes):
    facts = {
        "level": number,
        "users": 10,
        "requests_ok": 42,
        "requests_failed": 1,
        "output_tokens_per_s": 12345.6,
        "ttft_p50_s": 0.0504,
        "ttft_p99_s": 0.2,
        "tpot_p50_s": 0.01834,
        "valid": True,
        "invalid_reasons": [],
    }
    return LevelResult(**facts | changes)


def run_status(**changes):
    facts = {"experiment": "quickstart", "engine": "emulated", "num_levels": 2, "state": "running", "detail": "level 1"}
    return RunStatus(**facts | changes)


def ready(node):
    return ReplicaStatus(state="ready", node=node, load_s=12.34)


def show_all(*seen):
    out = console()
    view = LineView(out)
    for status, queue in seen:
        view.show(status, queue)
    view.close()
    return out.file.getvalue().splitlines()


def draw(status, queue=RUNNING):
    out = console()
    out.print(draw_status("quickstart/1", status, queue))
    return out.file.getvalue()


def test_lines_tell_each_thing_once_and_in_the_order_it_happened():
    replicas = {"a-0": ReplicaStatus(), "b-0": ReplicaStatus(state="loading", node="n1")}
    one_ready = replicas | {"a-0": ready("n1")}
    all_ready = one_ready | {"b-0": ready("n2")}
    loading = {"state": "loading", "detail": "2 replicas"}

    lines = show_all(
        (None, QueueState("PENDING", "Resources")),
        (None, QueueState("PENDING", "Resources")),
        (run_status(replicas=replicas, **loading), RUNNING),
        (run_status(replicas=one_ready, **loading), RUNNING),
        (run_status(replicas=all_ready, progress=PROGRESS), RUNNING),
        (run_status(replicas=all_ready, levels=[level()], detail="level 2"), RUNNING),
        (run_status(replicas=all_ready, levels=[level(), level(1)], state="finished", detail=""), RUNNING),
        (
            run_status(replicas=all_ready, levels=[level(), level(1)], state="finished", detail=""),
            QueueState("COMPLETED"),
        ),
    )

    assert [line.split(" tok/s")[0].strip() for line in lines] == [
        "queue: PENDING (Resources)",
        "loading: 2 replicas",
        "ready: a-0 on n1 after 12.3 s",
        "ready: b-0 on n2 after 12.3 s",
        "running: level 1",
        "10 users   12,346",
        "running: level 2",
        "10 users   12,346",
        "finished",
    ]


def test_somebody_who_attaches_late_is_told_everything_that_happened():
    lines = show_all((run_status(replicas={"a-0": ready("n1")}, levels=[level(), level(1)]), RUNNING))

    assert len(lines) == 4
    assert lines[-1] == "running: level 1"


def test_square_brackets_of_an_error_are_printed_as_they_are():
    assert show_all((run_status(detail="ports [20000, 20001] [bold]"), RUNNING)) == [
        "running: ports [20000, 20001] [bold]"
    ]


def test_a_level_is_told_in_one_line_with_its_units():
    assert describe_level(level()) == (
        "   10 users   12,346 tok/s  TTFT p50 50 p99 200 ms  TPOT p50 18.3 ms  42 ok, 1 failed"
    )


def test_a_level_without_an_answer_shows_no_number_and_why_it_is_invalid():
    empty = {"output_tokens_per_s": None, "ttft_p50_s": None, "ttft_p99_s": None, "tpot_p50_s": None}

    line = describe_level(level(**empty, valid=False, invalid_reasons=["interrupted", "server died: x"]))

    assert "- tok/s  TTFT p50 - p99 - ms" in line
    assert line.endswith("INVALID: interrupted; server died: x")


def test_progress_is_told_while_a_level_runs_and_not_between_levels():
    assert describe_progress(None) == ""
    assert describe_progress(PROGRESS) == ("10 users, measure 12 s: 4,322 tok/s, TTFT p50 - ms, 9 in flight, 1 failed")


def test_a_level_of_an_open_loop_is_told_by_its_rate():
    assert describe_level(level(users=None, rate_per_s=12.5)).startswith(" 12.5 req/s")
    assert describe_level(level(users=None)).startswith("trace")


def test_progress_names_the_commonest_failure():
    assert describe_progress(PROGRESS | {"commonest_failure": "status 429"}).endswith("1 failed (status 429)")


def test_the_queue_is_told_until_the_run_speaks_for_itself():
    assert describe_state(None, QueueState("PENDING", "Priority")) == "queue: PENDING (Priority)"
    assert describe_state(None, RUNNING) == "queue: RUNNING"
    assert describe_state(run_status(), RUNNING) == "running: level 1"
    assert describe_state(run_status(state="finished", detail=""), RUNNING) == "finished"


def test_a_run_in_the_queue_is_drawn_in_one_line():
    assert draw(None, QueueState("PENDING", "Resources")).split() == [
        "quickstart/1",
        "queue:",
        "PENDING",
        "(Resources)",
    ]


def test_the_picture_holds_state_replicas_levels_and_progress():
    bad = level(1, users=100, valid=False, invalid_reasons=["interrupted"])

    text = draw(run_status(replicas={"a-0": ready("n1"), "b-0": ReplicaStatus()}, levels=[level(), bad]))
    during = draw(run_status(levels=[level()], progress=PROGRESS))

    assert "quickstart/1  running: level 1" in text
    assert "a-0@n1 ready   b-0 planned" in text
    assert any(line.split() == ["10", "users", "12,346", "50", "200", "18.3", "42", "1"] for line in text.splitlines())
    assert "INVALID: interrupted" in text
    assert "level 2/2  10 users, measure 12 s" in during


def test_who_follows_a_run_in_lines_sees_its_last_level_and_is_left_to_say_how_it_ended():
    out = console()
    view = make_view(out, "t")
    view.show(run_status(levels=[level()], detail="level 2"), RUNNING)
    view.show(run_status(levels=[level(), level(1)], state="finished", detail=""), RUNNING)

    lines = [line.split(" tok/s")[0].strip() for line in out.file.getvalue().splitlines()]
    assert lines == ["10 users   12,346", "running: level 2", "10 users   12,346"]


def test_a_terminal_gets_a_picture_and_a_pipe_gets_lines():
    assert isinstance(make_view(console(), "t"), LineView)
    terminal = make_view(console(force_terminal=True), "quickstart/1")
    terminal.show(run_status(), RUNNING)
    terminal.close()
    assert isinstance(terminal, LiveView)

"""The same records, given to erhpc's formulas and to those of vLLM's benchmark and of guidellm.

Where definitions agree so do the numbers; where they differ, the difference is the one that `erhpc.results.metrics`
documents. The peers compute in interpreters of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from erhpc.config import SloConfig
from erhpc.results import metrics
from tests.unit.records import MS, SECOND, make_failed, make_part, make_record

FOLDER = Path(__file__).parent
SLO = SloConfig(ttft_s=0.1215, tpot_s=0.0231, e2e_s=1.5)
SLO_MS = {"ttft": 121.5, "tpot": 23.1, "e2el": 1500.0}
"""No latency lies on a bound: the peers' clocks are floats, and would decide by their last digit."""
RUN_S = 10.0
QUANTILES = (("mean", None), ("p50", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0))


def mixed_requests():
    """Forty requests that begin and end within ten seconds: some slow, some of one token, some of several a frame."""
    requests = []
    for index in range(40):
        num_gaps = 0 if index % 10 == 3 else 4 + index % 13
        gaps_us = [15_000 + 997 * ((index * 7 + gap * 5) % 17) for gap in range(num_gaps)]
        num_tokens = (num_gaps + 1) * (3 if index % 7 == 2 else 1)
        requests.append(
            make_record(sent_ns=index * 200 * MS, ttft_ns=(60 + 3 * index) * MS, gaps_us=gaps_us, tokens_out=num_tokens)
        )
    return requests


def late_requests():
    """The same, as an open loop sends them 50 ms after they were due; the stream ends 5 ms after the last token."""
    return [
        make_record(
            sent_ns=index * 200 * MS,
            latency_from="scheduled",
            scheduled_monotonic_ns=index * 200 * MS - 50 * MS,
            end_monotonic_ns=index * 200 * MS + 165 * MS,
        )
        for index in range(20)
    ]


def ramped_requests():
    """Users who begin one second apart and, after the window from 3 to 7 s, stop one second apart."""
    return [
        make_record(sent_ns=user * SECOND + turn * 200 * MS, ttft_ns=100 * MS, gaps_us=(24_000,) * 4)
        for user in range(4)
        for turn in range(35)
    ]


def unlucky_requests():
    """Ten that finish, one that breaks off after four tokens, one that gets none."""
    good = [make_record(sent_ns=index * SECOND // 2) for index in range(10)]
    broken = make_record(sent_ns=SECOND, status="failed", error_kind="truncated")
    return [*good, broken, make_failed(sent_ns=SECOND, end_monotonic_ns=2 * SECOND)]


def short_requests():
    """Twenty users, each without a pause, with answers of 160 ms."""
    return [make_record(sent_ns=user + turn * 160 * MS) for user in range(20) for turn in range(50)]


def stalled_requests():
    """One answer whose last token is late."""
    return [make_record(ttft_ns=100 * MS, gaps_us=(10_000, 10_000, 970_000))]


CASES = {
    "mixed": mixed_requests(),
    "late": late_requests(),
    "ramped": ramped_requests(),
    "unlucky": unlucky_requests(),
    "short": short_requests(),
    "stalled": stalled_requests(),
}


def describe(record):
    """A request as a client that counts from sending sees it: seconds, None where there is nothing."""

    def after_sending_s(time_ns):
        return None if time_ns is None else (time_ns - record.sent_monotonic_ns) / 1e9

    return {
        "ok": record.status == "ok",
        "due_s": record.scheduled_monotonic_ns / 1e9,
        "sent_s": record.sent_monotonic_ns / 1e9,
        "end_s": record.end_monotonic_ns / 1e9,
        "ttft_s": after_sending_s(record.first_token_monotonic_ns),
        "e2e_s": after_sending_s(record.last_token_monotonic_ns),
        "gaps_s": [gap_us / 1e6 for gap_us in record.token_gaps_us],
        "tokens_in": record.tokens_in,
        "tokens_out": record.tokens_out,
    }


def ask(python, script, folder):
    """Let `script` compute all cases in another interpreter."""
    asked, answered = folder / "cases.json", folder / "results.json"
    cases = {
        name: {"requests": [describe(record) for record in records], "run_s": RUN_S, "window_s": 1.0, "slo_ms": SLO_MS}
        for name, records in CASES.items()
    }
    asked.write_text(json.dumps(cases))
    argv = [python, "-W", "ignore", FOLDER / script, asked, answered]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(answered.read_text())


@pytest.fixture(scope="module")
def vllm(vllm_python, tmp_path_factory):
    return ask(vllm_python, "peer_vllm.py", tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def guidellm(tmp_path_factory):
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erhpc" / "bench" / "guidellm-0.8.1"
    python = Path(os.environ.get("ERHPC_GUIDELLM_PYTHON") or cache / "bin" / "python")
    if not python.exists():
        pytest.skip(f"{python} does not exist. Install guidellm 0.8.1 (6 GB) there, or set ERHPC_GUIDELLM_PYTHON.")
    return ask(python, "peer_guidellm.py", tmp_path_factory.mktemp("guidellm"))


def part_of(name, start_s=0.0, end_s=RUN_S):
    return make_part(CASES[name], round(start_s * SECOND), round(end_s * SECOND))


def latencies_of(name):
    """Our latencies of a case, by the name that vLLM gives them."""
    finished = metrics.finished_well(CASES[name])
    return {
        "ttft": metrics.quantiles(metrics.known(map(metrics.ttft_s, finished))),
        "tpot": metrics.quantiles(metrics.known(map(metrics.tpot_s, finished))),
        "itl": metrics.quantiles(metrics.gaps_us(finished), per_unit=metrics.US_PER_S),
        "e2el": metrics.quantiles(metrics.known(map(metrics.e2e_s, finished))),
    }


def read_vllm(result, latency):
    percentiles = dict(result[f"percentiles_{latency}_ms"])
    return {
        name: (result[f"mean_{latency}_ms"] if share is None else percentiles[share]) / 1000
        for name, share in QUANTILES
    }


@pytest.mark.vllm
@pytest.mark.parametrize("latency", ["ttft", "tpot", "itl", "e2el"])
def test_vllm_finds_the_same_latencies_down_to_every_quantile(vllm, latency):
    assert latencies_of("mixed")[latency] == pytest.approx(read_vllm(vllm["mixed"], latency), rel=1e-9)


@pytest.mark.vllm
def test_vllm_finds_the_same_rates_where_every_request_lies_within_the_window(vllm):
    part, found = part_of("mixed"), vllm["mixed"]

    assert metrics.requests_per_s(part) == pytest.approx(found["request_throughput"])
    assert metrics.output_tokens_per_s(part) == pytest.approx(found["output_throughput"])
    assert metrics.input_tokens_per_s(part) + metrics.output_tokens_per_s(part) == pytest.approx(
        found["total_token_throughput"]
    )


@pytest.mark.vllm
def test_vllm_finds_the_same_goodput_one_token_answers_included(vllm):
    good = [record for record in CASES["mixed"] if metrics.meets_slo(record, SLO)]

    assert metrics.goodput_per_s(part_of("mixed"), SLO) == pytest.approx(vllm["mixed"]["request_goodput"])
    assert 0 < len(good) < len(CASES["mixed"])
    assert any(record.tokens_out == 1 for record in good)


@pytest.mark.vllm
def test_vllm_does_not_count_the_time_that_an_open_loop_was_late(vllm):
    ours, theirs = latencies_of("late"), vllm["late"]

    for latency in ("ttft", "e2el"):
        assert ours[latency]["p99"] - read_vllm(theirs, latency)["p99"] == pytest.approx(0.050)
    assert ours["tpot"]["p99"] == pytest.approx(read_vllm(theirs, "tpot")["p99"])


@pytest.mark.vllm
def test_vllm_counts_ramp_and_drain_into_its_throughput(vllm):
    steady = 4 * 5 / 0.2

    assert metrics.output_tokens_per_s(part_of("ramped", 3, 7)) == pytest.approx(steady)
    assert vllm["ramped"]["output_throughput"] == pytest.approx(metrics.output_tokens_per_s(part_of("ramped")))
    assert vllm["ramped"]["output_throughput"] == pytest.approx(0.7 * steady)


@pytest.mark.vllm
def test_vllm_drops_the_tokens_of_answers_that_broke_off_and_tells_no_share(vllm):
    part = part_of("unlucky")

    assert metrics.output_tokens_per_s(part) - vllm["unlucky"]["output_throughput"] == pytest.approx(4 / RUN_S)
    assert metrics.requests_per_s(part) == pytest.approx(vllm["unlucky"]["request_throughput"])
    assert metrics.slo_attainment(CASES["unlucky"], SLO) == pytest.approx(10 / 12)
    assert not [name for name in vllm["unlucky"] if "attainment" in name]


@pytest.mark.vllm
def test_vllm_counts_a_request_in_every_second_that_it_touches(vllm):
    in_flight = metrics.count_in_flight([part_of("short")])

    assert in_flight.most == 20
    assert vllm["short"]["max_concurrent_requests"] >= 5 * in_flight.most


def test_guidellm_finds_the_same_times_to_the_first_token_and_calls_our_tpot_inter_token_latency(guidellm):
    for record, found in zip(CASES["mixed"], guidellm["mixed"]["requests"], strict=True):
        assert metrics.ttft_s(record) * 1000 == pytest.approx(found["ttft_ms"])
        assert metrics.normalised_s(record) * 1000 == pytest.approx(found["time_per_output_token_ms"])
        tpot_s = metrics.tpot_s(record)
        assert found["inter_token_latency_ms"] == (None if tpot_s is None else pytest.approx(tpot_s * 1000))


def test_guidellm_weighs_the_time_per_token_of_a_request_by_its_tokens(guidellm):
    found = [record for record in CASES["mixed"] if record.tokens_out > 1]
    per_token_s = [metrics.tpot_s(record) for record in found]

    weighted = np.average(per_token_s, weights=[record.tokens_out - 1 for record in found])

    assert guidellm["mixed"]["inter_token_latency"]["mean"] == pytest.approx(weighted * 1000)
    assert latencies_of("mixed")["tpot"]["mean"] == pytest.approx(np.mean(per_token_s))
    assert weighted != pytest.approx(np.mean(per_token_s), rel=1e-3)


def test_guidellm_takes_a_quantile_that_occurred_where_ours_lies_between_two(guidellm):
    ttfts_s = [metrics.ttft_s(record) for record in CASES["mixed"]]
    theirs = guidellm["mixed"]["ttft"]

    for name, share in metrics.QUANTILES:
        assert theirs["percentiles"][name] == pytest.approx(np.quantile(ttfts_s, share, method="inverted_cdf") * 1000)
    assert theirs["percentiles"]["p50"] != pytest.approx(latencies_of("mixed")["ttft"]["p50"] * 1000, rel=1e-4)
    assert theirs["mean"] == pytest.approx(latencies_of("mixed")["ttft"]["mean"] * 1000)


def test_guidellm_counts_from_sending_and_to_the_end_of_the_stream(guidellm):
    for record, found in zip(CASES["late"], guidellm["late"]["requests"], strict=True):
        assert metrics.ttft_s(record) - found["ttft_ms"] / 1000 == pytest.approx(0.050)
        assert found["latency_s"] == pytest.approx(metrics.in_flight_s(record))
        assert found["scheduled_latency_s"] - metrics.e2e_s(record) == pytest.approx(0.005)
        assert found["dispatch_delay_s"] == pytest.approx(metrics.send_late_s(record))


def test_guidellm_spreads_tokens_evenly_where_we_know_when_each_came(guidellm):
    (record,) = CASES["stalled"]
    (found,) = guidellm["stalled"]["requests"]

    in_half_a_second = sum(tokens for at_s, tokens in found["tokens_at"] if at_s < 0.5)

    assert metrics.tokens_between(record, 0, SECOND // 2) == 3
    assert in_half_a_second == 2
    assert metrics.gaps_us([record]).max() / 1000 == 970
    assert found["inter_token_latency_ms"] == pytest.approx(330)


def test_guidellm_finds_as_many_requests_in_flight_at_one_moment(guidellm):
    assert guidellm["short"]["concurrency"]["max"] == metrics.count_in_flight([part_of("short")]).most


def test_guidellm_takes_every_request_that_touched_the_window(guidellm):
    in_first_second = [record for record in CASES["mixed"] if record.sent_monotonic_ns < SECOND]

    assert len(in_first_second) == 5
    assert guidellm["mixed"]["num_in_window"] == 6, "the one that is sent when the window ends as well"


def test_guidellm_judges_no_answer_of_one_token_by_a_bound_on_the_time_per_token(guidellm):
    for record, found in zip(CASES["mixed"], guidellm["mixed"]["requests"], strict=True):
        assert found["conforms"] == (None if record.tokens_out == 1 else metrics.meets_slo(record, SLO))


def test_guidellm_counts_failed_requests_against_the_slo_as_we_do(guidellm):
    assert metrics.slo_attainment(CASES["unlucky"], SLO) == pytest.approx(10 / 12)
    assert guidellm["unlucky"]["attainment"] == pytest.approx(10 / 12)

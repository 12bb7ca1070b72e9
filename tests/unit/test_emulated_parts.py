"""The parts of an emulated expert: faults, prefix cache, answers in pieces, how a replica is served."""

from __future__ import annotations

import json
from math import inf
from random import Random

import pytest

from erhpc.config import ArchitectureConfig, ExpertConfig, FaultConfig
from erhpc.errors import ConfigError
from erhpc.experts.emulated_answer import WORDS, AnswerText
from erhpc.experts.emulated_faults import Faults
from erhpc.experts.emulated_metrics import bounds_up_to
from erhpc.experts.emulated_prefixes import PrefixCache
from erhpc.experts.emulated_request import Ask
from erhpc.plan.protocol import name_emulated_owner, read_speedup
from erhpc.twin.serving import describe_serving

LLAMA3_8B = ArchitectureConfig(32, 4096, 14336, 32, 8, 128256)


def faults(*found, replica="math-0"):
    return Faults(found, replica, Random(1))


@pytest.mark.parametrize(("replica", "is_hit"), [(None, 1), ("math", 1), ("math-0", 1), ("math-1", 0), ("code", 0)])
def test_a_fault_hits_a_replica_all_of_an_expert_or_everyone(replica, is_hit):
    found = faults(FaultConfig(kind="error_500", replica=replica))

    assert found.draw_status(0.0) == (500 if is_hit else None)


def test_errors_come_in_their_time_and_share():
    found = faults(FaultConfig(kind="error_503", after_s=10, duration_s=5, share=0.25))

    assert [found.draw_status(at_s) for at_s in (9.9, 15.0)] == [None, None]
    drawn = [found.draw_status(12.0) for _ in range(1000)]
    assert 200 < drawn.count(503) < 300


def test_faults_say_when_loading_ends_and_when_the_replica_does():
    assert (faults().extra_load_s, faults().crash_s) == (0, inf)
    found = faults(FaultConfig(kind="slow_start", duration_s=7), FaultConfig(kind="crash", after_s=3))
    assert (found.extra_load_s, found.crash_s) == (7, 3)


def test_hangs_that_follow_each_other_are_one():
    found = faults(
        FaultConfig(kind="hang", after_s=15, duration_s=10), FaultConfig(kind="hang", after_s=10, duration_s=5)
    )

    assert [found.postpone(end_s) for end_s in (9.0, 11.0, 16.0, 25.0)] == [9.0, 25.0, 25.0, 25.0]
    assert faults(FaultConfig(kind="hang")).postpone(1.0) == inf


def test_a_prompt_hits_the_cache_as_far_as_its_whole_blocks_are_known():
    cache = PrefixCache(100)

    assert cache.take(list(range(50))) == 0
    assert cache.take(list(range(50))) == 48
    assert cache.take([*range(20), *range(100, 140)]) == 16
    assert cache.take(list(range(1, 50))) == 0


def test_four_characters_of_a_text_count_as_a_token_of_a_block():
    cache = PrefixCache(100)

    assert cache.take("x" * 256 + "one") == 0
    assert cache.take("x" * 256 + "another") == 64


def test_a_full_cache_forgets_the_end_of_what_was_asked_longest_ago():
    cache = PrefixCache(4)
    cache.take(list(range(48)))
    cache.take(list(range(100, 132)))

    assert cache.take(list(range(48))) == 32


@pytest.mark.parametrize("interval", [1, 3, 10, 50])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 30, 31, 32])
def test_pieces_of_any_length_make_the_same_text(interval, tokens):
    ask = Ask(
        api="completions", prompt_tokens=3, answer_tokens=tokens, max_tokens=tokens, prompt="", finish_reason="length",
        stream=True, include_usage=False,
    )  # fmt: skip
    text = AnswerText(ask, answer_id="1", created_s=0, model="m", interval=interval)
    frames = text.token_frames()

    pieces = [text.opening_frames()] if tokens > 1 else []
    later = range(2, tokens)
    pieces += [frames[(n - interval) % len(frames)] for n in later if (n - 1) % interval == 0]
    pieces.append(text.closing_frames().removesuffix(b"data: [DONE]\n\n"))

    words = "".join(json.loads(piece.removeprefix(b"data: "))["choices"][0]["text"] for piece in pieces)
    assert words == "".join(WORDS[n % len(WORDS)] for n in range(tokens))
    assert len(pieces) <= 2 + (tokens - 1) // interval


def serve(profile="vllm-v1-async", **changes):
    expert = ExpertConfig("llama", LLAMA3_8B, **changes)
    return describe_serving(expert, gpu="a100_80", profile=profile, kv_capacity_tokens=100_000)


def test_an_engine_whose_host_works_ahead_schedules_ahead_unless_told_otherwise():
    assert serve().limits.asynchronous
    assert not serve("vllm-v1-sync").limits.asynchronous
    assert not serve(engine_args={"no-async-scheduling": True}).limits.asynchronous
    assert serve("vllm-v1-sync", engine_args={"async_scheduling": True}).limits.asynchronous


def test_flags_of_vllm_that_change_what_tokens_do_count_here_too():
    serving = serve(engine_args={"stream-interval": 8, "long-prefill-token-threshold": 512, "swap-space": 4})

    assert serving.stream_interval == 8
    assert serving.send_s(256) == pytest.approx(serve().send_s(256) / 8)
    assert serve(engine_args={"api-server-count": 2}).send_s(512) == pytest.approx(serve().send_s(512) / 2)
    assert serving.limits.long_prefill_token_threshold == 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": "cutlass"}, ["cutlass", "marlin"]),
        ({"profile": "sglang"}, ["sglang", "vllm-v1-async"]),
        ({"engine_args": {"stream-interval": "often"}}, ["stream-interval='often'"]),
    ],
)
def test_what_the_twin_has_no_model_of_is_refused_with_what_is_allowed(changes, words):
    with pytest.raises(ConfigError) as caught:
        serve(**changes)

    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("speedup", "owner"), [(1, "erhpc-emulated"), (10, "erhpc-emulated-x10"), (0.5, "erhpc-emulated-x0.5")]
)
def test_a_server_whose_time_runs_faster_says_so_in_its_owner(speedup, owner):
    assert name_emulated_owner(speedup) == owner
    assert read_speedup(owner) == speedup


@pytest.mark.parametrize("owner", ["vllm", "erhpc", "erhpc-null", "erhpc-emulated-xyz", ""])
def test_others_run_in_real_time(owner):
    assert read_speedup(owner) == 1


def test_bounds_of_token_counts_end_below_the_longest_sequence():
    assert bounds_up_to(8192) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    assert bounds_up_to(16384)[-1] == 10000

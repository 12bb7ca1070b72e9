from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.errors import ConfigError
from erhpc.twin.scheduler import BLOCK_TOKENS, Limits, Request, Scheduler


def limits(**changes):
    return Limits(
        **{"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 256, "kv_capacity_tokens": 512} | changes
    )


def scheduler_with(*requests, **changes):
    scheduler = Scheduler(limits(**changes))
    for request in requests:
        scheduler.add(request)
    return scheduler


def step(scheduler):
    """One step: {request id: tokens computed}, and the ids that got a token."""
    shares = {request.request_id: tokens for request, tokens in scheduler.schedule().shares}
    return shares, [request.request_id for request in scheduler.finish_step()]


def test_the_step_that_completes_a_prompt_yields_the_first_token():
    request = Request("a", prompt_tokens=10, answer_tokens=2)
    scheduler = scheduler_with(request)

    assert step(scheduler) == ({"a": 10}, ["a"])
    assert step(scheduler) == ({"a": 1}, ["a"])
    assert request.is_finished
    assert not scheduler.has_requests
    assert scheduler.kv_usage == 0


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks():
    scheduler = scheduler_with(Request("a", 150, 2))

    assert [step(scheduler) for _ in range(4)] == [
        ({"a": 64}, []),
        ({"a": 64}, []),
        ({"a": 22}, ["a"]),
        ({"a": 1}, ["a"]),
    ]


def test_running_requests_come_before_waiting_ones_and_share_one_budget():
    scheduler = scheduler_with(Request("a", 10, 5))
    step(scheduler)
    scheduler.add(Request("b", 100, 5))

    assert step(scheduler) == ({"a": 1, "b": 63}, ["a"])
    assert step(scheduler) == ({"a": 1, "b": 37}, ["a", "b"])


def test_no_more_than_max_num_seqs_run_and_the_rest_wait_in_order():
    scheduler = scheduler_with(*(Request(name, 4, 2) for name in "abcdef"))

    assert step(scheduler)[1] == ["a", "b", "c", "d"]
    assert (scheduler.num_running, scheduler.num_waiting) == (4, 2)
    step(scheduler)
    assert step(scheduler)[1] == ["e", "f"]


def test_a_request_is_admitted_only_when_its_whole_sequence_fits_and_nobody_overtakes_it():
    scheduler = scheduler_with(
        Request("a", 200, 20),
        Request("b", 100, 20),
        Request("c", 4, 2),
        kv_capacity_tokens=256,
        max_num_batched_tokens=512,
    )

    assert step(scheduler)[0] == {"a": 200}
    assert scheduler.num_waiting == 2


def test_the_last_admitted_request_gives_way_when_blocks_run_out_and_computes_everything_again():
    first, last = Request("first", 16, 40), Request("last", 16, 40)
    scheduler = scheduler_with(first, last, max_model_len=64, kv_capacity_tokens=64)
    while scheduler.num_preemptions == 0:
        step(scheduler)

    assert first.is_running
    assert not last.is_running
    assert last.generated_tokens == 17
    while not last.is_running:
        step(scheduler)
    assert first.is_finished
    assert last.generated_tokens == 18
    assert last.computed_tokens == 16 + 17


def test_an_aborted_request_frees_its_slot_and_its_blocks_even_in_the_middle_of_a_step():
    scheduler = scheduler_with(Request("a", 10, 5), Request("b", 10, 5))
    scheduler.schedule()
    scheduler.abort("a")

    assert [request.request_id for request in scheduler.finish_step()] == ["b"]
    scheduler.abort("b")
    scheduler.abort("never seen")
    assert not scheduler.has_requests
    assert scheduler.kv_usage == 0


def test_a_step_is_summed_up_for_the_timing_model():
    scheduler = scheduler_with(Request("a", 10, 5))
    step(scheduler)
    scheduler.add(Request("b", 100, 5))
    step(scheduler)
    batch = scheduler.schedule().batch

    assert (batch.num_decode_seqs, batch.decode_context_tokens) == (1, 11)
    assert (batch.num_prefill_seqs, batch.num_prefill_tokens) == (1, 37)
    assert batch.prefill_attention == 37 * (63 + 37 / 2)
    assert batch.num_logit_rows == 2


def test_limits_that_no_full_length_sequence_fits_are_an_error():
    with pytest.raises(ConfigError, match="max_model_len=1024 does not fit a KV cache of 512 tokens"):
        limits(max_model_len=1024)


@pytest.mark.parametrize("request_", [Request("a", 0, 1), Request("a", 1, 0), Request("a", 200, 57)])
def test_a_request_that_could_never_finish_is_refused(request_):
    with pytest.raises(ValueError, match="request a"):
        scheduler_with(request_)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(6, 20),
    st.integers(1, 6),
)
def test_every_request_gets_all_its_tokens_and_no_limit_is_ever_broken(lengths, num_blocks, max_num_seqs):
    requests = [Request(str(number), *length) for number, length in enumerate(lengths)]
    scheduler = scheduler_with(
        *requests,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=32,
        max_model_len=90,
        kv_capacity_tokens=num_blocks * BLOCK_TOKENS,
    )
    while scheduler.has_requests:
        shares = scheduler.schedule().shares
        assert shares
        assert sum(tokens for _, tokens in shares) <= 32
        assert scheduler.num_running <= max_num_seqs
        assert sum(request.num_blocks for request in requests) <= num_blocks
        scheduler.finish_step()

    assert [request.generated_tokens for request in requests] == [answer for _, answer in lengths]
    assert scheduler.kv_usage == 0

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
    shares = {share.request.request_id: share.tokens for share in scheduler.schedule().shares}
    return shares, [request.request_id for request in scheduler.finish_step()]


def test_the_step_that_completes_a_prompt_yields_the_first_token():
    request = Request("a", prompt_tokens=10, answer_tokens=2)
    scheduler = scheduler_with(request)

    assert step(scheduler) == ({"a": 10}, ["a"])
    assert step(scheduler) == ({"a": 1}, ["a"])
    assert request.is_finished
    assert not scheduler.has_requests
    assert scheduler.kv_usage == 0


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


def test_without_chunks_a_budget_below_the_longest_prompt_is_an_error():
    with pytest.raises(ConfigError, match="max_num_batched_tokens=64 is below max_model_len=256"):
        limits(chunked_prefill=False)


def test_a_step_is_scheduled_before_the_last_one_is_finished_only_asynchronously():
    scheduler = scheduler_with(Request("a", 10, 5))
    scheduler.schedule()

    with pytest.raises(RuntimeError, match="schedule before finish_step"):
        scheduler.schedule()


@pytest.mark.parametrize("request_", [Request("a", 0, 1), Request("a", 1, 0), Request("a", 200, 57)])
def test_a_request_that_could_never_finish_is_refused(request_):
    with pytest.raises(ValueError, match="request a"):
        scheduler_with(request_)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(0, 60)), min_size=1, max_size=12),
    st.integers(6, 20),
    st.integers(1, 6),
    st.fixed_dictionaries(
        {
            "asynchronous": st.booleans(),
            "reserve_full_sequence": st.booleans(),
            "long_prefill_token_threshold": st.sampled_from([0, 5]),
            "watermark": st.sampled_from([0.0, 0.1]),
        }
    ),
)
def test_every_request_gets_all_its_tokens_and_no_limit_is_ever_broken(lengths, num_blocks, max_num_seqs, options):
    requests = [Request(str(number), *length) for number, length in enumerate(lengths)]
    scheduler = scheduler_with(
        *requests,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=32,
        max_model_len=90,
        kv_capacity_tokens=num_blocks * BLOCK_TOKENS,
        **options,
    )
    while scheduler.has_requests:
        shares = scheduler.schedule().shares
        assert shares or scheduler.num_in_flight
        assert sum(share.tokens for share in shares) <= 32
        assert scheduler.num_running <= max_num_seqs
        assert sum(request.num_blocks for request in requests) + scheduler.num_free_blocks == num_blocks
        if scheduler.num_in_flight > options["asynchronous"] or not shares:
            scheduler.finish_step()

    assert [request.generated_tokens for request in requests] == [answer for _, answer, _ in lengths]
    assert scheduler.kv_usage == 0

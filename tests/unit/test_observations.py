from __future__ import annotations

import pytest

from erhpc.twin.observations import Span, observe

MS = 1_000_000


def answer(sent_ms, first_ms, gaps_ms, *, tokens_in=100, is_measured=True, tokens_out=None):
    return Span(
        sent_ns=sent_ms * MS,
        first_ns=first_ms * MS,
        last_ns=(first_ms + sum(gaps_ms)) * MS,
        gaps_us=[gap * 1000 for gap in gaps_ms],
        tokens_in=tokens_in,
        tokens_out=tokens_out or len(gaps_ms) + 1,
        is_measured=is_measured,
    )


def seen(kind, spans):
    return [one for one in observe(spans) if one.kind == kind]


def test_a_request_alone_shows_its_prompt_and_its_decodes():
    spans = [answer(0, 30, [5] * 10)]

    (prompt,) = seen("prefill", spans)
    (decode,) = seen("decode", spans)
    assert (prompt.tokens, prompt.seconds) == (100, pytest.approx(0.030))
    assert (decode.num_seqs, decode.seconds, decode.num_steps) == (1, pytest.approx(0.005), 10)
    assert decode.tokens == 100 + 1 + 4.5  # the first step reads the prompt and one token, the last one nine more


def test_steps_are_told_by_how_many_decode_and_no_prompt_is_among_them():
    # The second request is sent at 30 ms; its prompt makes a step of 12 ms, and steps of both last 7 ms.
    first = answer(0, 10, [5, 5, 5, 5, 12, 7, 7, 7, 7, 7])
    second = answer(30, 42, [7] * 5, tokens_in=200)

    decodes = seen("decode", [second, first])

    assert [(one.num_seqs, round(one.seconds, 6), one.num_steps) for one in decodes] == [(1, 0.005, 4), (2, 0.007, 5)]
    assert decodes[1].tokens == (100 + 6) + (200 + 1) + 2 * 2
    assert [one.tokens for one in seen("prefill", [second, first])] == [100]  # the second one's was not alone


def test_a_request_outside_the_window_counts_among_those_in_flight_but_shows_nothing():
    warmup = answer(0, 10, [5] * 20, is_measured=False)
    measured = answer(11, 15, [5] * 10)

    assert {one.num_seqs for one in seen("decode", [warmup, measured])} == {2}
    assert seen("prefill", [warmup, measured]) == []


def test_answers_whose_tokens_come_several_at_a_time_show_no_steps():
    assert seen("decode", [answer(0, 10, [40] * 10, tokens_out=81)]) == []
    (decode,) = seen("decode", [answer(0, 10, [5] * 18 + [10], tokens_out=21)])
    assert decode.seconds == pytest.approx(0.005)  # one arrival of two tokens in twenty does no harm


def test_a_request_without_a_first_token_is_a_prompt_in_flight_until_its_end():
    failed = Span(sent_ns=0, first_ns=None, last_ns=100 * MS, gaps_us=[], tokens_in=5, tokens_out=0, is_measured=False)

    assert observe([failed, answer(1, 10, [5] * 10)]) == []
    assert observe([]) == []

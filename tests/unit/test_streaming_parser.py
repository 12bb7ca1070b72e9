from __future__ import annotations

import json
import time
from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.client.answer import AnswerReader
from erhpc.client.events import MAX_EVENT_BYTES, EventSplitter, EventTooLong
from erhpc.client.exchange import Exchange


def events_of(*pieces: bytes) -> list[bytes]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def reference_events(stream: bytes) -> list[bytes]:
    """The HTML standard's algorithm, line by line over the whole stream."""
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        if line == b"":
            events += [b"\n".join(data)] if data else []
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return events


LINES = st.one_of(
    st.sampled_from([b"data: one", b"data:two", b"data", b"data: ", b": note", b"event: x", b"id: 3", b"", b""]),
    st.text(alphabet="aé漢:{} ", max_size=8).map(lambda text: b"data: " + text.encode()),
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]))).map(
    lambda lines: b"".join(line + ending for line, ending in lines)
)


@settings(deadline=None)  # the machine may be busy
@given(STREAMS, st.lists(st.integers(min_value=0, max_value=10_000), max_size=12))
def test_events_are_the_same_wherever_the_stream_is_cut(stream: bytes, places: list[int]):
    assert events_of(*cut(stream, places)) == events_of(stream) == reference_events(stream)


def test_each_byte_may_come_alone():
    stream = b'data: {"a": "\xc3\xa9"}\r\n\r\ndata: [DONE]\r\n\r\n'
    assert events_of(*[stream[index : index + 1] for index in range(len(stream))]) == [b'{"a": "\xc3\xa9"}', b"[DONE]"]


def test_an_event_is_given_as_soon_as_its_last_carriage_return_has_come():
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\r\n\r") == [b"a"]
    assert splitter.feed(b"\ndata: b\r\n\r\n") == [b"b"]


def test_comments_and_other_fields_are_no_events():
    assert events_of(b": ping\n\nevent: note\nid: 4\n\ndata: x\n\n") == [b"x"]


def test_several_data_lines_are_one_event():
    assert events_of(b'data: {"a":\ndata: 1}\n\n') == [b'{"a":\n1}']


def test_a_byte_order_mark_is_no_part_of_the_first_event():
    assert events_of(b"\xef\xbb\xbfdata: x\n\n") == [b"x"]


def test_a_byte_order_mark_in_the_middle_belongs_to_the_name_of_its_field():
    assert events_of(b"data: x\n\n\xef\xbb\xbfdata: y\n\ndata: z\n\n") == [b"x", b"z"]


def test_a_byte_order_mark_may_be_cut():
    assert events_of(b"\xef", b"\xbb\xbfdata: x\n", b"\n") == [b"x"]


def test_a_long_event_in_many_pieces_takes_linear_time():
    pieces = [b"data: ", *[b"x" * 1000] * 16_000, b"\n\n"]
    started_s = time.process_time()
    assert [len(event) for event in events_of(*pieces)] == [16_000_000]
    assert time.process_time() - started_s < 2  # 0.1 s; copying all for each piece would take a minute


def test_an_event_without_end_is_refused():
    with pytest.raises(EventTooLong):
        events_of(b"data: " + b"x" * MAX_EVENT_BYTES)


def chat(delta: dict[str, object] | None = None, **more: object) -> bytes:
    frame = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta or {}, **more}]}
    return f"data: {json.dumps(frame)}\n\n".encode()


def usage(tokens_in: int, tokens_out: int) -> bytes:
    frame = {"choices": [], "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": 0}}
    return f"data: {json.dumps(frame)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def read(*pieces: bytes) -> Exchange:
    """What a reader finds in pieces that arrive at 0, 1,000, 2,000 ... ns; the body ends after the last."""
    exchange = Exchange(sent_ns=0)
    reader = AnswerReader(exchange)
    if not any(reader.read(piece, 1000 * index) for index, piece in enumerate(pieces)):
        reader.end()
    return exchange


def test_role_only_and_empty_frames_are_no_tokens():
    exchange = read(chat({"role": "assistant", "content": ""}), chat({"content": "a"}), chat({"content": None}), DONE)
    assert (list(exchange.arrivals_ns), exchange.num_frames, exchange.error_kind) == ([1000], 1, None)


@pytest.mark.parametrize(
    "delta", [{"content": "a"}, {"reasoning_content": "a"}, {"reasoning": "a"}, {"tool_calls": [{"index": 0}]}]
)
def test_text_reasoning_and_tool_calls_are_tokens(delta: dict[str, object]):
    assert read(chat(delta), DONE).num_frames == 1


def test_the_text_of_a_completion_is_a_token():
    assert read(b'data: {"choices":[{"index":0,"text":" hi"}]}\n\n', DONE).num_frames == 1


def test_frames_that_come_together_are_one_arrival():
    exchange = read(chat({"content": "a"}) + chat({"content": "b"}), chat({"content": "c"}), DONE)
    assert (list(exchange.arrivals_ns), exchange.num_frames) == ([0, 1000], 3)


def test_gaps_lie_between_arrivals_and_add_up():
    exchange = Exchange(sent_ns=0, arrivals_ns=array("q", [1_000, 2_400, 3_800, 5_200]))
    assert list(exchange.gaps_us()) == [1, 2, 1]
    assert list(Exchange(sent_ns=0, arrivals_ns=array("q", [5])).gaps_us()) == []


def test_a_clock_that_was_set_makes_gaps_that_the_records_can_hold():
    hour_ns = 3_600_000_000_000
    exchange = Exchange(sent_ns=0, arrivals_ns=array("q", [0, hour_ns, 5_000, 2 * hour_ns, 2 * hour_ns + 7_000]))
    assert list(exchange.gaps_us()) == [2**31 - 1, 0, 2**31 - 1, 7]


def test_usage_tells_the_tokens_in_and_out():
    exchange = read(chat({"content": "a"}), chat({}, finish_reason="length"), usage(17, 9), DONE)
    assert (exchange.tokens_in, exchange.tokens_out) == (17, 9)


def test_text_that_looks_like_a_frame_is_one_token():
    assert read(chat({"content": '{"choices":[{"delta":{"content":"x"}}]} [DONE]\n\ndata: '}), DONE).num_frames == 1


def test_a_stream_without_done_or_finish_reason_is_truncated():
    exchange = read(chat({"content": "a"}), chat({"content": "b"})[:20])
    assert (exchange.error_kind, exchange.num_frames) == ("truncated", 1)


def test_a_finish_reason_is_an_end_too():
    assert read(chat({"content": "a"}), chat({}, finish_reason="stop")).error_kind is None


def test_done_without_its_blank_line_is_an_end():
    assert read(chat({"content": "a"}), b"data: [DONE]").error_kind is None


@pytest.mark.parametrize(
    "event",
    [
        b'{"error": {"message": "engine died", "code": 500}}',
        b'{"error": "engine died"}',
        b'{"object": "error", "message": "engine died"}',
    ],
)
def test_an_error_frame_fails_the_request_with_its_message(event: bytes):
    exchange = read(chat({"content": "a"}), b"data: " + event + b"\n\n", DONE)
    assert (exchange.error_kind, exchange.error_text, exchange.num_frames) == ("stream_error", "engine died", 1)


NEGATIVE = b'{"usage": {"prompt_tokens": -1, "completion_tokens": 4}}'
HUGE = b'{"usage": {"prompt_tokens": 1, "completion_tokens": 99999999999}}'
DEEP = b'{"choices": ' + b"[" * 100_000


@pytest.mark.parametrize("event", [b"{nonsense", b'{"choices": 3}', b"[1]", b"\xff", DEEP, NEGATIVE, HUGE])
def test_a_frame_that_is_no_chunk_is_malformed(event: bytes):
    assert read(b"data: " + event + b"\n\n", DONE).error_kind == "malformed"


def test_done_may_have_spaces_about_it():
    assert read(chat({"content": "a"}), b"data:  [DONE] \n\n").error_kind is None


def test_an_event_without_data_is_passed_over():
    assert read(b"data:\n\n", b"data:  \n\n", chat({"content": "a"}), DONE).error_kind is None

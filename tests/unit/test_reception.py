from __future__ import annotations

import http.client
import io
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.client.answer import AnswerReader
from erhpc.client.exchange import Exchange
from erhpc.client.reception import Reception
from erhpc.http1.body import BodyError, make_body
from erhpc.http1.head import HeadError, find_head_end, parse_head
from tests.streams import (
    CHUNKED_HEAD,
    DONE,
    EVENT_STREAM,
    LAST_CHUNK,
    answer,
    chat,
    chunk,
    cut,
    usage,
)

many = settings(deadline=None, max_examples=200)  # the machine may be busy


def stamp_of(index: int) -> int:
    return 1_000 * index + 7


def read_kept(reception: Reception, kept: list[bytes], last: int) -> None:
    """Have the kept pieces read, the newest of which came as number `last`."""
    reception.read(list(kept), [stamp_of(index) for index in range(last - len(kept) + 1, last + 1)])
    kept.clear()


def receive(pieces: list[bytes], *, closes: bool = True) -> tuple[Exchange, Reception]:
    """What a wire does with pieces: it keeps those that end as a token's do, and has them read with the next other."""
    exchange = Exchange(sent_ns=0)
    reception = Reception(exchange)
    kept: list[bytes] = []
    for index, piece in enumerate(pieces):
        kept.append(piece)
        if piece[-5:] != reception.frame_end:
            read_kept(reception, kept, index)
    if kept:
        read_kept(reception, kept, len(pieces) - 1)
    if closes:
        reception.close("closed")
    return exchange, reception


# What a server may send


@dataclass
class Wire:
    """A response as it travels: each byte of the body's payload stands at a known place."""

    data: bytes
    payload: bytes
    places: list[int]
    """For each byte of the payload its index in `data`."""
    seams: list[int]
    """Where head, chunks and tail meet."""
    framing: str


TEXTS = st.one_of(
    st.text(min_size=1, max_size=12),
    st.sampled_from(
        [" token", "[DONE]", "0\r\n\r\n", '"', "\\", "\\\\", '\\"', "\n", "\t", "\x00", "\x7f", "é漢😀", "a" * 70]
    ),
    st.sampled_from(['","delta":{"content":"', '"}}]}\n\n', "data: [DONE]\n\n", "\u2028", "\ud7ff"]),
)


def frame(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "choices": choices} | more


def choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "logprobs": None, "finish_reason": None} | fields


TOKENS = TEXTS.map(lambda text: frame([choice(delta={"content": text})]))
FRAMES = st.one_of(
    TOKENS,
    TOKENS,
    TOKENS,
    TEXTS.map(lambda text: frame([choice(text=text)])),
    TEXTS.map(lambda text: frame([choice(delta={"role": "assistant", "content": text})])),
    TEXTS.map(lambda text: frame([choice(delta={"reasoning_content": text, "content": None})])),
    TEXTS.map(lambda text: frame([choice(delta={"reasoning": text})])),
    TEXTS.map(lambda text: frame([choice(delta={"content": text}, finish_reason="length")])),
    TEXTS.map(lambda text: frame([choice(delta={"content": text}), choice(delta={"content": text})])),
    TEXTS.map(
        lambda text: frame([choice(delta={"content": text})], usage={"prompt_tokens": 3, "completion_tokens": 1})
    ),
    TEXTS.map(lambda text: frame([choice(delta={"content": text}, logprobs={"content": [{"token": text}]})])),
    st.just(frame([choice(delta={"role": "assistant", "content": ""})])),
    st.just(frame([choice(delta={"content": None, "tool_calls": [{"index": 0}]})])),
    st.just(frame([choice(delta={}, finish_reason="stop")])),
    st.just(frame([], usage={"prompt_tokens": 11, "completion_tokens": 12, "prompt_tokens_details": {"a": 1}})),
)
FAILURES = st.sampled_from(
    ['{"error": {"message": "engine died"}}', '{"object": "error", "message": "m"}', "<html>", "[1]", '{"choices": 3}']
)


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """One event with its blank line, in lines that end in LF."""
    kind = draw(
        st.sampled_from(["plain"] * 6 + ["escaped", "spread", "unspaced", "comment", "empty", "other", "failure"])
    )
    if kind == "comment":
        return b": ping\n\n"
    if kind == "empty":
        return draw(st.sampled_from([b"data:\n\n", b"\n", b"data\n\n"]))
    if kind == "other":
        return b"event: message\nid: 7\nretry: 10\n\n"
    if kind == "failure":
        return draw(st.sampled_from([b"", b"", b"data: %b\n\n" % draw(FAILURES).encode()]))
    found = draw(FRAMES)
    if kind == "spread":
        return b"".join(b"data: %b\n" % line.encode() for line in json.dumps(found, indent=1).splitlines()) + b"\n"
    compact = (",", ":") if draw(st.booleans()) else (", ", ": ")
    text = json.dumps(found, ensure_ascii=kind == "escaped", separators=compact).encode()
    return (b"data:%b\n\n" if kind == "unspaced" else b"data: %b\n\n") % text


@st.composite
def bodies(draw: st.DrawFn) -> list[bytes]:
    """The events of one answer; the lines of one body end all alike."""
    found = draw(st.lists(events(), max_size=12))
    found += draw(st.sampled_from([[DONE], [DONE], [DONE], [], [b"data: [DONE]"], [b'data: {"cho'], [DONE, DONE]]))
    ending = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]))
    mark = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"]))
    found = [each.replace(b"\n", ending) for each in found]
    return [mark + b"".join(found[:1]), *found[1:]]


HEADS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\ncontent-TYPE:text/event-stream; charset=utf-8  \r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 \r\nX-Erhpc-Expert:math\r\n" + EVENT_STREAM,
        b"HTTP/1.1 200 OK\nX-Odd:\nContent-Type: text/event-stream\n",
    ]
)
EXTENSIONS = st.sampled_from([b"", b"", b"", b";a=b", b' ; name="v"'])
TRAILERS = st.sampled_from([b"", b"", b"X-Time: 3\r\n", b"A: b\r\nC: }\r\n"])


@st.composite
def responses(draw: st.DrawFn) -> Wire:
    parts = draw(bodies())
    payload = b"".join(parts)
    framing = draw(st.sampled_from(["chunked"] * 4 + ["length", "close"]))
    head = draw(HEADS)
    ending = b"\r\n" if head.endswith(b"\r\n") else b"\n"
    if framing != "chunked":
        fields = b"Content-Length: %d" % len(payload) + ending if framing == "length" else b"Connection: close" + ending
        head += fields + ending
        places = list(range(len(head), len(head) + len(payload)))
        seams = list(accumulate([len(head), *map(len, parts)]))
        return Wire(head + payload, payload, places, seams, framing)
    head += b"Transfer-Encoding: chunked" + ending + ending
    if draw(st.booleans()):
        parts = cut(payload, draw(st.lists(st.integers(0, 5_000), max_size=12)))
    form = draw(st.sampled_from([b"%x", b"%x", b"%X", b"000%x"]))
    data, places, seams = head, [], [len(head)]
    for part in filter(None, parts):
        data += form % len(part) + draw(EXTENSIONS) + b"\r\n"
        places += range(len(data), len(data) + len(part))
        data += part + b"\r\n"
        seams.append(len(data))
    return Wire(data + b"0\r\n" + draw(TRAILERS) + b"\r\n", payload, places, seams, framing)


CUTS = st.lists(st.integers(0, 20_000), max_size=20)


def pieces_of(wire: Wire, way: str, places: list[int]) -> list[bytes]:
    if way == "bytes":
        return [wire.data[index : index + 1] for index in range(len(wire.data))]
    if way == "seams":
        return cut(wire.data, wire.seams)
    if way == "few seams":
        return cut(wire.data, wire.seams[:: 1 + sum(places) % 3])
    return cut(wire.data, places)


# What it means, by other means


def reference_events(stream: bytes) -> Iterator[tuple[bytes, int]]:
    """The HTML standard's algorithm, line by line over the whole stream: each event and the byte that completes it."""
    at = 3 if stream.startswith(b"\xef\xbb\xbf") else 0
    data: list[bytes] = []
    while at < len(stream):
        end = at
        while end < len(stream) and stream[end : end + 1] not in (b"\r", b"\n"):
            end += 1
        if end == len(stream):
            return
        line, last = stream[at:end], end
        at = end + 2 if stream[end : end + 2] == b"\r\n" else end + 1
        if line == b"":
            if data:
                yield b"\n".join(data), last
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))


def num_tokens(frame: dict[str, Any]) -> int:
    deltas = [one.get("delta") or {"content": one.get("text")} for one in frame.get("choices") or ()]
    names = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")
    return sum(any(delta.get(name) for name in names) for delta in deltas)


def reference_exchange(wire: Wire, pieces: list[bytes]) -> Exchange:
    """What the response says, decoded as a whole; arrivals are the pieces in which events became complete."""
    piece_of = [index for index, piece in enumerate(pieces) for _ in piece]
    exchange = Exchange(sent_ns=0, http_status=200)
    if b"Expert:math" in wire.data:
        exchange.expert, exchange.gateway_queue_s = "math", 0.0
    if wire.payload:
        exchange.first_piece_ns = stamp_of(piece_of[wire.places[0]])
    arrivals: Counter[int] = Counter()
    finished = wire.payload.endswith(b"data: [DONE]")
    for data, last in reference_events(wire.payload):
        if data in (b"", b"[DONE]"):
            finished = finished or bool(data)
            if data:
                break
            continue
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("choices", []), list):
            exchange.error_kind = "malformed"
            break
        if "error" in found or found.get("object") == "error":
            exchange.error_kind = "stream_error"
            break
        if tokens := num_tokens(found):
            arrivals[piece_of[wire.places[last]]] += tokens
        finished = finished or any(one["finish_reason"] for one in found["choices"])
        if found.get("usage"):
            exchange.tokens_in, exchange.tokens_out = (
                found["usage"]["prompt_tokens"],
                found["usage"]["completion_tokens"],
            )
    if exchange.error_kind is None and not finished:
        exchange.error_kind = "truncated"
    exchange.arrivals_ns = array("q", map(stamp_of, sorted(arrivals)))
    exchange.num_frames = arrivals.total()
    exchange.num_coalesced = sum(count > 1 for count in arrivals.values())
    return exchange


class FakeSocket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_args: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def standard_library_body(data: bytes) -> bytes:
    while data[9:12] in (b"100", b"103"):
        data = data[data.index(b"\r\n\r\n") + 4 :]  # http.client knows no 103
    response = http.client.HTTPResponse(FakeSocket(data), method="POST")  # type: ignore[arg-type]
    response.begin()
    return response.read()


@many
@given(responses(), st.sampled_from(["seams", "few seams", "random", "random", "bytes"]), CUTS)
def test_a_response_says_the_same_wherever_the_network_cuts_it(wire: Wire, way: str, places: list[int]):
    pieces = pieces_of(wire, way, places)
    assert standard_library_body(wire.data) == wire.payload

    exchange, reception = receive(pieces)

    assert replace(exchange, error_text=None) == reference_exchange(wire, pieces)
    assert reception.has_ended
    assert not reception.is_broken


@many
@given(responses(), st.sampled_from(["seams", "few seams", "random", "bytes"]), CUTS)
def test_the_end_of_a_response_is_seen_without_waiting_for_the_connection_to_end(wire, way, places):
    _, reception = receive(pieces_of(wire, way, places), closes=False)

    if wire.framing == "close":
        assert not reception.is_complete
        assert not reception.awaits_tail
    else:
        assert reception.has_ended
        assert reception.is_complete
        assert not reception.awaits_tail


def read_without_templates(pieces: list[bytes]) -> Exchange:
    """Every piece decoded in full, by the same parts."""
    exchange = Exchange(sent_ns=0)
    reader, body, start, ended = AnswerReader(exchange), None, b"", False
    for index, piece in enumerate(pieces):
        try:
            if body is None:
                start += piece
                if not (end := find_head_end(start)):
                    continue
                head = parse_head(start[:end])
                exchange.http_status, body, piece = head.status, make_body(head), start[end:]
            payload = body.feed(piece)
        except (BodyError, HeadError) as error:
            if not ended:
                exchange.fail("malformed", str(error))
            return exchange
        if payload and not ended:
            exchange.first_piece_ns = exchange.first_piece_ns or stamp_of(index)
            ended = reader.read(payload, stamp_of(index))
        if body.is_over and not ended:
            ended = True
            reader.end()
    if not ended:
        exchange.fail("truncated", "closed in the middle of the answer")
    return exchange


# Around the text: what comes before it, or instead, and after it, or instead. TEXT stands for the text.
SHAPES = st.sampled_from(
    [
        [b'{"choices":[{"delta":{"content":"TEXT"}}]}', b'{"choices":[{"delta":{"xontent":"TEXT"}}]}'],
        [b'{"choices":[{"text":"TEXT","finish_reason":null}]}', b'{"choices":[{"text":"TEXT","finish_reason":"ab"}]}'],
        [b'{"choices": [{"text": "TEXT"}], "error": null}', b'{"choices": [{"text": "TEXT"}], "error": 1234}'],
        [b'{"choices":[{"delta":{"reasoning":"TEXT","text":""}}]}', b'{"choices":[{"delta":{"reasoning":"TEXT"}}]}X'],
        [b'{"choices":[{"delta":{"content":""}},{"delta":{"content":"TEXT"}}]}'],
        [b'{"choices":[{"text":"TEXT"},{"text":"a"}]}', b'{"choices":[{"text":"TEXT"},{"text":""}]}'],
        [b'{"choices":[{"text":"TEXT"}],"usage":{"prompt_tokens":1}}', b'{"choices":[{"text":"TEXT"}],"usage":null}'],
        [b'{"text":"TEXT","choices":[{"text":"b"}]}', b'{"text":"TEXT","choices":[{"text":""}]}'],
    ]
)  # fmt: skip
RAW_TEXTS = st.one_of(
    st.sampled_from([b" token", b" a", b"b", b"", "\u00e9\u6f22".encode()]),
    TEXTS.map(lambda text: json.dumps(text).encode()[1:-1]),
    TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False).encode()[1:-1]),
    st.binary(max_size=4),
    st.sampled_from(
        [rb"\q", rb"\ud800", rb"\ud83d\ude00", rb"\udc00", rb"\u12", b"\\", b"\xed\xa0\x80", b'"', b"\n", b"\n\n"]
    ),
    st.sampled_from([b'","content":"', b'"}}]}\n\ndata: {"choices":[{"delta":{"content":"', b'"}}]}\n\n\r\n5\r\n']),
)
LOOSE = st.sampled_from([b": note\n", b"data: 1\n", b"data: ", b"\n", b"\r", b": note\n\n", b"data: {}\n\n", DONE])


@st.composite
def raw_chunks(draw: st.DrawFn) -> list[bytes]:
    """Chunks most of which are alike but for their text, and some of which are not what they look like."""
    usual, *others = draw(SHAPES)
    chunks = []
    for kind in draw(
        st.lists(st.sampled_from(["like"] * 9 + ["loose", "misfit", "nested", "cut"]), min_size=2, max_size=9)
    ):
        shape = draw(st.sampled_from([usual, usual, usual, *others]))
        data = b"data: %b\n\n" % shape.replace(b"TEXT", draw(RAW_TEXTS))
        if kind == "loose":
            data = draw(LOOSE)
        size = len(data) + (draw(st.integers(-3, 3)) if kind == "misfit" else 0)
        header = draw(st.sampled_from([b"%x"] * 6 + [b"%X", b"0%x", b"%x ", b"%x;a", b"%x\n"])) % max(0, size)
        if kind == "nested":
            inner = chunk(data)
            chunks += [b"%x\r\n" % len(inner), inner, b"\r\n"]
        elif kind == "cut":
            chunks += cut(chunk(data), [draw(st.integers(1, len(data)))])
        else:
            chunks.append(header + b"\r\n" + data + b"\r\n")
    return chunks


@settings(deadline=None, max_examples=1_000)
@given(raw_chunks(), st.sampled_from([[chunk(DONE), LAST_CHUNK], [LAST_CHUNK], []]), st.sampled_from([1, 1, 2, 3]))
def test_frames_that_are_not_decoded_say_what_decoding_them_would_say(chunks, tail, num_together):
    chunks = [*chunks, *tail]
    bounds = [*range(0, len(chunks), num_together), len(chunks)]
    pieces = [CHUNKED_HEAD, *(b"".join(chunks[start:end]) for start, end in pairwise(bounds) if start < end)]

    exchange, _ = receive(pieces)

    assert exchange == read_without_templates(pieces)


CHANGES = st.lists(
    st.tuples(st.integers(0, 100_000), st.sampled_from(["flip", "insert", "delete", "copy"]), st.integers(0, 255)),
    max_size=3,
)


def changed(data: bytes, changes: list[tuple[int, str, int]]) -> bytes:
    """`data` with some bytes wrong, as no server should send them."""
    for place, kind, byte in changes:
        at = place % len(data)
        new = {"flip": bytes([byte]), "insert": bytes([byte]) + data[at : at + 1], "delete": b"", "copy": data[at:]}
        data = data[:at] + new[kind] + data[at + 1 :]
    return data


@many
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.booleans())
def test_garbage_is_a_failure_and_no_exception(pieces: list[bytes], has_head: bool):
    exchange, reception = receive([CHUNKED_HEAD, *pieces] if has_head else pieces)

    assert reception.has_ended
    assert exchange.error_kind in ("connect", "truncated", "malformed", "status")


@many
@given(responses(), CHANGES, CUTS)
def test_a_response_with_wrong_bytes_ends_somehow(wire: Wire, changes, places):
    pieces = cut(changed(wire.data, changes), places)

    exchange, reception = receive(pieces)

    assert reception.has_ended
    assert exchange.num_frames >= len(exchange.arrivals_ns)


@many
@given(responses(), st.sampled_from(["gzip", "deflate", "x-gzip"]), st.booleans(), CUTS)
def test_a_body_that_was_compressed_unasked_is_inflated(wire: Wire, coding: str, flushes: bool, places: list[int]):
    squeeze = zlib.compressobj(wbits=31 if "gzip" in coding else 15)
    parts = []
    for part in cut(wire.payload, range(0, 5_000, 97)):
        parts.append(squeeze.compress(part) + (squeeze.flush(zlib.Z_SYNC_FLUSH) if flushes else b""))
    parts.append(squeeze.flush())
    head = CHUNKED_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: %b\r\n\r\n" % coding.encode())
    data = head + b"".join(chunk(part) for part in parts if part) + LAST_CHUNK

    exchange, reception = receive(cut(data, places))

    plain = reference_exchange(wire, [wire.data])
    assert (exchange.num_frames, exchange.tokens_out) == (plain.num_frames, plain.tokens_out)
    assert exchange.error_kind == plain.error_kind
    assert reception.is_complete


# The states of one response


def test_frames_alike_need_not_be_read_until_the_answer_may_have_ended():
    reception = Reception(Exchange(sent_ns=0))
    head, role, first, *more = answer("a", "b", "c")
    assert reception.frame_end == b""
    reception.read([head, role, first], [1, 2, 3])
    assert [piece[-5:] == reception.frame_end for piece in more] == [True] * 4 + [False] * 2
    reception.read(more, [4] * len(more))
    assert reception.frame_end == b""


def test_the_answer_ends_before_its_response():
    exchange, reception = receive(answer("a", "b")[:-1], closes=False)
    assert reception.has_ended
    assert reception.awaits_tail
    assert not reception.is_complete
    assert exchange.error_kind is None


def test_a_tail_that_breaks_the_framing_does_not_spoil_the_answer():
    exchange, reception = receive([*answer("a", "b")[:-1], b"nonsense\r\n"], closes=False)
    assert (exchange.error_kind, exchange.num_frames) == (None, 2)
    assert reception.is_broken
    assert not reception.awaits_tail


def test_what_follows_the_end_of_a_response_makes_its_connection_useless():
    _, reception = receive([*answer("a")[:-1], LAST_CHUNK + b"HTTP/1.1 200 OK\r\n"], closes=False)
    assert reception.has_ended
    assert not reception.is_complete


def test_a_connection_that_ends_before_any_byte_is_no_truncated_answer():
    assert receive([])[0].error_kind == "connect"
    assert receive([b"HTT"])[0].error_kind == "truncated"


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n", "application/json"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "of no type"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "switched"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "interim"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP/1.1 status line"),
        (b"HTTP/2 200 OK\r\n\r\n", "no HTTP/1.1 status line"),
        (b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM + b"Content-Encoding: br\r\n\r\n", "content-encoding 'br'"),
        (b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "transfer-encoding"),
        (b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n", "content-length"),
    ],
)
def test_what_is_no_event_stream_is_malformed_at_once(head: bytes, text: str):
    exchange, reception = receive([head], closes=False)
    assert exchange.error_kind == "malformed"
    assert text in exchange.error_text
    assert reception.has_ended


@pytest.mark.parametrize(
    "tail",
    [
        b"Content-Length: 4\r\n\r\nbusy",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n",
        b"\r\nbusy",
        b"Content-Length: 400\r\n\r\nbusy",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nbusyXXX",
        b"Content-Type: text/event-stream\r\nContent-Length: 4\r\n\r\nbusy",
    ],
    ids=["length", "chunked", "close", "short", "broken", "of a stream"],
)
def test_a_refusal_is_a_status_however_its_body_ends(tail: bytes):
    exchange, _ = receive([b"HTTP/1.1 503 Service Unavailable\r\n" + tail])
    assert (exchange.error_kind, exchange.http_status, exchange.error_text) == ("status", 503, "HTTP 503: busy")


def test_a_refusal_that_never_ends_is_a_status_once_enough_of_it_has_come():
    exchange, reception = receive(
        [b"HTTP/1.1 500 Oh\r\nContent-Length: 1000000000\r\n\r\n", *[b"x" * 500] * 9], closes=False
    )
    assert exchange.error_kind == "status"
    assert reception.has_ended


def test_a_refusal_that_stalls_is_a_status_and_no_time_out():
    exchange, reception = receive([b"HTTP/1.1 429 Slow Down\r\nContent-Length: 9\r\n\r\nwait"], closes=False)
    reception.fail("timeout_idle", "silent")
    assert (exchange.error_kind, exchange.error_text) == ("status", "HTTP 429: wait")


def test_a_redirect_ends_the_answer_at_its_head():
    exchange, reception = receive([b"HTTP/1.1 307 There\r\nLocation: /b\r\nContent-Length: 9\r\n\r\n"], closes=False)
    assert reception.has_ended
    assert reception.redirect == "/b"
    assert exchange.error_kind is None


ROUTED = b"x-erhpc-expert: math\r\nX-Erhpc-Replica: math-1\r\n"


@pytest.mark.parametrize(
    ("fields", "waited_s"),
    [
        (b"", None),
        (ROUTED, 0.0),
        (ROUTED + b"X-Erhpc-Queue-Us: 1500.5\r\n", 0.0015005),
        (b"x-erhpc-queue-us: 2000000.0\r\n", 2.0),
        *((ROUTED + b"x-erhpc-queue-us: %b\r\n" % odd, None) for odd in (b"", b"long", b"-1.0", b"nan", b"inf")),
    ],
)
def test_a_gateway_tells_how_long_a_request_waited_or_by_its_silence_that_it_did_not(
    fields: bytes, waited_s: float | None
):
    head, *rest = answer("a")
    exchange, _ = receive([head[:-2] + fields + b"\r\n", *rest])
    assert exchange.error_kind is None
    assert exchange.gateway_queue_s == waited_s


def test_what_a_gateway_said_as_it_redirected_stands():
    exchange, _ = receive(
        [b"HTTP/1.1 307 There\r\nLocation: /b\r\nx-erhpc-queue-us: 7000.0\r\n" + ROUTED + b"\r\n"], closes=False
    )
    reception = Reception(exchange)
    for piece in answer("a"):
        reception.read([piece], [1])
    assert (exchange.http_status, exchange.expert, exchange.replica) == (200, "math", "math-1")
    assert exchange.gateway_queue_s == 0.007


def test_a_redirect_to_nowhere_is_a_refusal():
    exchange, reception = receive([b"HTTP/1.1 307 There\r\nContent-Length: 0\r\n\r\n"], closes=False)
    assert (reception.redirect, exchange.error_kind) == (None, "status")


@pytest.mark.parametrize(("length", "kind"), [(b"10", "truncated"), (b"100000", "truncated")], ids=["short", "long"])
def test_a_wrong_content_length_truncates_an_answer_without_end(length: bytes, kind: str):
    head = b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM + b"Content-Length: " + length + b"\r\n\r\n"
    assert receive([head, chat("a")])[0].error_kind == kind


def test_an_answer_that_has_ended_may_be_longer_than_its_content_length():
    events = [chat("a"), usage(1, 1), DONE]
    head = b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM + b"Content-Length: %d\r\n\r\n" % (sum(map(len, events)) - 20)
    exchange, reception = receive([head, *events, b"more"], closes=False)
    assert (exchange.error_kind, exchange.num_frames) == ("truncated", 1)
    assert not reception.is_complete


def test_time_is_out_only_while_the_answer_has_not_ended():
    exchange, reception = receive(answer("a"), closes=False)
    reception.fail("timeout_total", "late")
    assert exchange.error_kind is None
    exchange, reception = receive(answer("a")[:3], closes=False)
    reception.fail("timeout_total", "late")
    assert exchange.error_kind == "timeout_total"

"""What the gateway reads of a body, what it forwards, and what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import RouterConfig
from erhpc.gateway.errors import ApiError, Outcome, ReplicaError, unavailable, unknown_model
from erhpc.gateway.requests import InquiryTraits, choose_request_id, parse_inquiry


def chat(*messages, **fields):
    return json.dumps({"model": "auto", "messages": list(messages), **fields}).encode()


def turn(role, content):
    return {"role": role, "content": content}


def traits(api, raw, *, session_header=None, **config):
    return InquiryTraits(parse_inquiry(api, raw).content, session_header, RouterConfig(**config))


def routed(api, raw, which="last_user", limit_chars=8192):
    return traits(api, raw, text=which, text_limit_chars=limit_chars).text


def prefix(api, raw, limit_chars=1024):
    return traits(api, raw, prefix_limit_chars=limit_chars).prefix


TALK = chat(turn("system", "be kind"), turn("user", "one"), turn("assistant", "two"), turn("user", "three"))


def test_the_last_user_turn_is_routed():
    assert routed("chat", TALK) == "three"


def test_all_turns_are_routed_when_asked_for():
    assert routed("chat", TALK, "all") == "be kind\none\ntwo\nthree"


def test_a_chat_without_a_user_turn_is_routed_by_all_turns():
    assert routed("chat", chat(turn("system", "be kind"), turn("assistant", None))) == "be kind\n"


def test_text_parts_are_routed_and_other_parts_are_not():
    parts = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert routed("chat", chat(turn("user", [*parts, {"type": "text", "text": "this?"}]))) == "what is\nthis?"


@pytest.mark.parametrize(
    ("prompt", "text"), [("hello", "hello"), (["a", "b"], "a\nb"), ([1, 2], ""), ([[1, 2], [3]], ""), ([], "")]
)
def test_completion_prompts_are_routed_and_token_numbers_are_not(prompt, text):
    assert routed("completions", json.dumps({"model": "auto", "prompt": prompt}).encode()) == text


def test_routed_text_is_cut_at_the_limit():
    assert routed("chat", chat(turn("user", "abcdef")), limit_chars=4) == "abcd"


def test_the_prefix_of_a_chat_ends_with_the_first_user_turn_so_that_all_turns_of_a_conversation_share_it():
    first = chat(turn("system", "be kind"), turn("user", "one"))
    assert prefix("chat", first) == prefix("chat", TALK) == "be kind\none"
    assert prefix("chat", chat(turn("system", "be kind"), turn("user", "two"))) != prefix("chat", first)


def test_a_prefix_is_cut_at_the_limit_so_that_prompts_which_begin_alike_share_it():
    assert prefix("chat", TALK, 4) == "be k"
    assert prefix("chat", TALK, 9) == "be kind\no"
    assert prefix("completions", json.dumps({"model": "auto", "prompt": "be kind to me"}).encode(), 7) == "be kind"


@pytest.mark.parametrize(
    ("prompt", "begin"),
    [(["abcdef", "x"], "abcdef"), ([1, 22, 333, 4], "1 22"), ([[1, 22, 333], [4]], "1 22"), ([], ""), ([[]], "")],
)
def test_the_prefix_of_a_completion_is_that_of_its_first_prompt_be_it_text_or_tokens(prompt, begin):
    assert prefix("completions", json.dumps({"model": "auto", "prompt": prompt}).encode(), 8) == begin


def test_a_chat_without_words_has_no_prefix():
    assert prefix("chat", chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})) == ""


@pytest.mark.parametrize(
    ("header", "user", "session"),
    [("h", "u", "h"), (None, "u", "u"), ("", "u", "u"), ("h", None, "h"), (None, None, None), (None, {"id": 7}, None)],
)
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_header_says_whose_session_it_is_before_the_field_user(api, header, user, session):
    raw = json.dumps({"model": "auto", "messages": [turn("user", "x")], "prompt": "x", "user": user}).encode()
    assert traits(api, raw, session_header=header).session == session


def test_a_body_that_names_the_served_model_is_forwarded_byte_for_byte():
    raw = b'{ "model" : "math" ,\n "prompt":"x", "prompt":"y"}'
    assert parse_inquiry("completions", raw).body_for("math") is raw


def test_only_the_model_name_is_rewritten():
    raw = b'{"seed":1.50e0,"model":"auto","messages":[ {"role":"user","content":"\\u00e9"} ],"x":{"b":-0,"a":[]}}'
    forwarded = parse_inquiry("chat", raw).body_for("llama")
    assert forwarded == raw.replace(b'"auto"', b'"llama"')


def test_a_body_keeps_even_its_blanks():
    raw = b'{ "model" : "au\\u0074o" ,\n "prompt":"x" }'
    assert parse_inquiry("completions", raw).body_for("llama") == b'{ "model" : "llama" ,\n "prompt":"x" }'


@pytest.mark.parametrize(
    "raw",
    [
        b'{"x":{"model":"b"},"model":"auto","prompt":"x"}',
        b'{"x":{"model":"b"},"mod\\u0065l":"auto","prompt":"x"}',
        b'{"\\u006D\\u006f\\u0064\\u0065\\u006c":"auto","prompt":"x","y":["model"]}',
        b'{"prompt":"\\"model\\":\\"b\\"","model":"auto"}',
        b'{"prompt":"\\"model","x":"b","model":"auto"}',
        b'{"model":"b","prompt":"x","model":"auto"}',
        b'{"prompt":"\\\\","model":"a\\"to"}',
    ],
)
def test_the_models_name_is_rewritten_where_it_stands_and_nowhere_else(raw):
    forwarded = parse_inquiry("completions", raw).body_for("llama")
    assert json.loads(forwarded) == {**json.loads(raw), "model": "llama"}


def test_what_is_no_text_names_no_session_and_passes_through_unread():
    for user in (b"1" * 6000, b"[[1],[2]]", b"null"):
        raw = b'{"model":"auto","prompt":"x","user":%b}' % user
        assert traits("completions", raw).session is None
        assert parse_inquiry("completions", raw).body_for("llama") == raw.replace(b"auto", b"llama")


def test_of_a_chat_without_end_no_more_is_read_than_is_used():
    raw = b'{"model":"auto","messages":[' + b",".join([b'{"role":"system","content":"ab"}'] * 1000) + b"]}"
    assert traits("chat", raw, text="all", text_limit_chars=10).text == "ab\nab\nab\na"
    assert traits("chat", raw, prefix_limit_chars=4).prefix == "ab\na"
    assert len(parse_inquiry("chat", raw).content.routed_text("all", 10)) < 20


@settings(max_examples=30, deadline=None, database=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name not in {"model", "prompt", "stream"}),
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists
        ),
    )
)
def test_unknown_fields_survive_the_rewriting(extra):
    raw = json.dumps({**extra, "model": "auto", "prompt": "x"}).encode()
    assert json.loads(parse_inquiry("completions", raw).body_for("llama")) == {**json.loads(raw), "model": "llama"}


@pytest.mark.parametrize(
    ("raw", "message", "param"),
    [
        (b"", "no JSON", None),
        (b"{", "no JSON", None),
        (b"\xff{}", "no JSON", None),
        (b'{"model":"auto","messages":[{"role":"user","content":"\xff"}]}', "no JSON", None),
        (b'{"model":"auto","x":"\xff","messages":[{"role":"user"}]}', "no JSON", None),
        (b'{"model":"auto","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "Expected", "messages[0]"),
        (b'{"model":"auto","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply", None),
        (b"[]", "Expected `object`", None),
        (b'{"messages":[{"role":"user"}]}', "missing required field", "model"),
        (b'{"model":"auto"}', "missing required field", "messages"),
        (b'{"model":"auto","messages":[]}', "length >= 1", "messages"),
        (b'{"model":7,"messages":[{"role":"user"}]}', "Expected `str`", "model"),
        (b'{"model":"auto","messages":"hi"}', "Expected `array`", "messages"),
        (b'{"model":"auto","messages":[{"role":"user","content":5}]}', "got `int`", "messages[0].content"),
        (b'{"model":"auto","messages":[{"content":"x"}]}', "missing required field", "messages[0].role"),
        (b'{"model":"auto","messages":[{"role":"user"}],"stream":"yes"}', "Expected `bool", "stream"),
    ],
)
def test_a_malformed_chat_is_refused_with_what_is_wrong_and_where(raw, message, param):
    with pytest.raises(ApiError, match=message.replace("|", r"\|")) as caught:
        parse_inquiry("chat", raw)
    assert caught.value.status == 400
    assert caught.value.param == param


def test_a_completion_without_a_prompt_is_refused():
    with pytest.raises(ApiError, match="prompt"):
        parse_inquiry("completions", b'{"model":"auto"}')


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"input": "a sum"}, "a sum"),
        ({"input": ["a", "sum"]}, "a\nsum"),
        ({"input": [[1, 2], [3]]}, ""),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"image": "x"}]}]}, "hi"),
        ({"prompt": "a loop"}, "a loop"),
        ({"messages": [turn("system", "be kind"), turn("user", "one")]}, "be kind\none"),
        ({"query": "which?", "documents": ["not", "these"]}, "which?"),
        ({"input": [], "prompt": None, "messages": [turn("user", "")], "query": "last"}, "last"),
        ({"input": "first", "query": "last"}, "first"),
        ({"tokens": [1, 2]}, ""),
        ({"input": 7, "prompt": True, "messages": {"a": 1}, "query": 1.5}, ""),
        ({}, ""),
    ],
)
def test_other_routes_are_classified_by_the_first_field_that_holds_a_text(fields, text):
    raw = json.dumps({"model": "auto", **fields}).encode()
    assert routed("other", raw) == routed("other", raw, "all") == text
    assert prefix("other", raw, 3) == text[:3]


def test_texts_of_other_routes_are_not_looked_for_without_end():
    deep = b'{"input":' + b"[" * 500 + b'"x"' + b"]" * 500 + b"}"
    assert routed("other", deep) == ""
    assert routed("other", b'{"input":' + b"[" * 4 + b'"x"' + b"]" * 4 + b"}") == "x"


def test_a_body_of_another_route_need_not_name_a_model_and_is_told_that_of_the_replica():
    inquiry = parse_inquiry("other", b'{"prompt" : "x","n":1.50}')
    assert inquiry.model == "auto"
    assert json.loads(inquiry.body_for("llama")) == {"prompt": "x", "n": 1.5, "model": "llama"}
    assert b'"n":1.50' in inquiry.body_for("llama")


@pytest.mark.parametrize("raw", [b"", b"[]", b'"x"', b'{"model":7}', b'{"model":null}', b'{"input":"\xff"}'])
def test_a_malformed_body_of_another_route_is_refused(raw):
    with pytest.raises(ApiError) as caught:
        parse_inquiry("other", raw)
    assert caught.value.status == 400


def test_of_prompts_without_end_no_more_are_read_than_are_used():
    many = json.dumps({"model": "auto", "prompt": ["a"] * 1000}).encode()
    assert len(parse_inquiry("completions", many).content.routed_text("all", 10)) < 20
    spread = json.dumps({"model": "auto", "input": [[1]] * 1000 + ["late"]}).encode()
    assert routed("other", spread, limit_chars=1000) == ""
    assert routed("other", spread, limit_chars=3000) == "late"


@pytest.mark.parametrize("given_id", ["a", "req-1.2:3_4", "x" * 128])
def test_a_sane_request_id_is_kept(given_id):
    assert choose_request_id(given_id) == given_id


@pytest.mark.parametrize("given_id", [None, "", "x" * 129, "a b", "a\n", "é", "a;b"])
def test_any_other_request_id_is_replaced_by_a_new_one(given_id):
    first, second = choose_request_id(given_id), choose_request_id(given_id)
    assert len({first, second, given_id}) == 3
    assert len(first) == 32


def test_errors_have_openais_shape():
    error = json.loads(unknown_model("law", ["auto", "math"]).body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
    assert error["message"] == "The model 'law' does not exist. Allowed: auto, math."


def test_the_name_of_a_model_is_not_repeated_without_end():
    assert len(str(unknown_model("x" * 1_000_000, ["auto"]))) < 200


def test_errors_of_replicas_are_server_errors():
    for error in (unavailable("math"), unavailable(None), ReplicaError(502, "gone", Outcome.BROKEN)):
        assert json.loads(error.body)["error"]["type"] == "server_error"

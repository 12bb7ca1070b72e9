"""What a user asks, in which order, and what the bodies of the requests hold."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import SeedSequence, default_rng
from tokenizers import Tokenizer

from erhpc.config import ArrivalConfig, LengthConfig, PrefixConfig, WorkloadConfig
from erhpc.corpus.prompts import Prompt, demo_text
from erhpc.errors import ConfigError, InputError
from erhpc.experts.model_directory import build_tokenizer
from erhpc.plan.protocol import CHARS_PER_TOKEN
from erhpc.workload.pool import PromptPool, build_pool
from erhpc.workload.requests import LoadRequest, RequestSource
from erhpc.workload.tokenizer import FileTokenizer, read_tokenizer

PROMPTS = [Prompt(f"p{number}", "math" if number % 2 else "law", f'"Question" {number}?\t') for number in range(50)]
RECORDED = Prompt("r", "law", "Why?", later=("And?", "Well?"), answers=("So.", ""))
UNIFORM = LengthConfig(kind="uniform", low=1, high=64, mean=32)
TRACED = LengthConfig(kind="trace", low=2, high=100)
APIS = ("chat", "completions")


def source_of(user=0, *, seed=1, prompts=PROMPTS, draw_lengths=None, tokenizer=None, **workload) -> RequestSource:
    config = WorkloadConfig(**{"output_tokens": UNIFORM} | workload)
    pool = PromptPool(prompts, config, seed, tokenizer, draw_lengths)
    return RequestSource(user, seed, "auto", config, pool)


def requests_of(user=0, *, count=20, **given) -> list[LoadRequest]:
    source = source_of(user, **given)
    return [source.draw() for _ in range(count)]


def said_in(request: LoadRequest) -> list[str]:
    """Everything said in a request; of a completions prompt, what blank lines divide."""
    body = msgspec.json.decode(request.body)
    if "prompt" in body:
        return body["prompt"].split("\n\n")
    return [message["content"] for message in body["messages"]]


def speakers_in(request: LoadRequest) -> list[str]:
    return [message["role"] for message in msgspec.json.decode(request.body)["messages"]]


WORKLOADS = {
    "prompts": {},
    "completions": {"api": "completions"},
    "mixture": {"mixture": {"law": 1, "math": 3}},
    "synthetic": {"format": "synthetic", "input_tokens": UNIFORM},
    "conversations": {"turns": LengthConfig(kind="uniform", low=1, high=5, mean=3)},
    "recorded": {"prompts": [RECORDED, *PROMPTS], "turns": LengthConfig(mean=4)},
    "prefix": {"prefix": PrefixConfig(20, 3)},
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_a_user_the_same_requests(name):
    assert requests_of(3, **WORKLOADS[name]) == requests_of(3, **WORKLOADS[name])


@pytest.mark.parametrize("name", WORKLOADS)
def test_another_seed_and_another_user_get_other_requests(name):
    mine = requests_of(3, **WORKLOADS[name])
    others = (requests_of(3, seed=2, **WORKLOADS[name]), requests_of(4, **WORKLOADS[name]))

    for other in others:
        assert [request.body for request in mine] != [request.body for request in other]


@pytest.mark.parametrize("name", ["prompts", "conversations"])
def test_all_requests_of_a_user_are_of_one_session_and_of_no_one_elses(name):
    assert {request.session for request in requests_of(3, **WORKLOADS[name])} == {b"3"}
    assert {request.session for request in requests_of(12, seed=2, **WORKLOADS[name])} == {b"12"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_user_asks_the_same_whoever_draws_from_the_pool_between(name):
    config = WorkloadConfig(**{"output_tokens": UNIFORM} | {k: v for k, v in WORKLOADS[name].items() if k != "prompts"})
    pool = PromptPool(WORKLOADS[name].get("prompts", PROMPTS), config, 1)
    mine, other = (RequestSource(user, 1, "auto", config, pool) for user in (3, 4))
    mixed = []
    for number in range(20):
        for _ in range(number % 3):
            other.draw()
        mixed.append(mine.draw())

    assert mixed == requests_of(3, **WORKLOADS[name])


def test_a_users_stream_is_the_one_that_spawning_gives_whatever_the_number_of_users():
    assert SeedSequence(1).spawn(5)[3].spawn_key == SeedSequence(1).spawn(1000)[3].spawn_key == (3,)
    expected = default_rng(SeedSequence(1).spawn(1000)[3]).integers(len(PROMPTS))
    assert requests_of(3)[0].prompt_id == f"p{expected}"


def test_a_plain_prompt_is_a_conversation_of_one_turn():
    requests = requests_of()

    assert [request.sequence for request in requests] == list(range(20))
    assert {(request.turn, request.is_last_turn) for request in requests} == {(0, True)}


def test_a_chat_request_asks_for_a_stream_with_usage():
    request = requests_of(api="chat", temperature=0.5)[0]
    body = msgspec.json.decode(request.body)
    assert body == {
        "model": "auto",
        "messages": [{"role": "user", "content": PROMPTS[int(request.prompt_id[1:])].text}],
        "max_tokens": request.max_tokens,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


def test_a_completions_request_holds_the_prompt_as_text():
    request = requests_of(api="completions")[0]
    body = msgspec.json.decode(request.body)
    assert body["prompt"] == PROMPTS[int(request.prompt_id[1:])].text
    assert "messages" not in body


def test_ignore_eos_is_left_out_for_servers_that_do_not_know_it():
    assert "ignore_eos" not in msgspec.json.decode(requests_of(ignore_eos=False)[0].body)


@given(text=st.text(min_size=1), answer=st.text(min_size=1), later=st.text(min_size=1), api=st.sampled_from(APIS))
@settings(deadline=None)
def test_any_text_reaches_the_body_unchanged(text, answer, later, api):
    prompt = Prompt("1", "", text, (later,), (answer,))

    body = msgspec.json.decode(requests_of(prompts=[prompt], api=api, turns=LengthConfig(mean=2))[1].body)

    if api == "completions":
        assert body["prompt"] == f"{text}\n\n{answer}\n\n{later}"
    else:
        assert [message["content"] for message in body["messages"]] == [text, answer, later]


def test_a_synthetic_request_has_a_prompt_of_about_the_tokens_asked_for():
    request = requests_of(2, format="synthetic", prompts=[], input_tokens=LengthConfig(mean=100))[5]

    assert (request.prompt_id, request.domain) == ("synthetic-2-5", "")
    assert [len(text) for text in said_in(request)] == [100 * CHARS_PER_TOKEN]


def test_a_workload_without_prompts_is_refused():
    with pytest.raises(InputError, match=r"no prompt\. Set workload\.prompts"):
        source_of(prompts=[])


def test_domains_are_drawn_by_their_shares_and_prompts_evenly_within():
    prompts = [Prompt(f"{domain}{number}", domain, "x") for domain in ("law", "math", "art") for number in range(4)]
    requests = requests_of(prompts=prompts, mixture={"math": 6, "law": 2, "art": 0}, count=8000)

    domains = Counter(request.domain for request in requests)
    assert domains["math"] == pytest.approx(6000, rel=0.03)
    assert domains["law"] == pytest.approx(2000, rel=0.06)
    assert set(domains) == {"math", "law"}
    of_math = Counter(request.prompt_id for request in requests if request.domain == "math")
    assert sorted(of_math) == ["math0", "math1", "math2", "math3"]
    assert all(count == pytest.approx(1500, rel=0.1) for count in of_math.values())


def test_the_order_in_which_shares_are_written_does_not_matter():
    one, other = ({"math": 0.7, "law": 0.3}, {"law": 0.3, "math": 0.7})
    assert requests_of(mixture=one) == requests_of(mixture=other)


def test_a_share_of_an_unknown_domain_is_refused_with_the_domains_there_are():
    with pytest.raises(InputError, match=r"domain chess.*law, math"):
        source_of(mixture={"law": 1, "chess": 1})


def test_without_a_mixture_every_prompt_is_as_likely():
    prompts = [Prompt("1", "math", "x"), Prompt("2", "law", "x"), Prompt("3", "law", "x"), Prompt("4", "", "x")]
    counts = Counter(request.prompt_id for request in requests_of(prompts=prompts, count=4000))
    assert all(counts[number] == pytest.approx(1000, rel=0.12) for number in "1234")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", ["prompts", "synthetic", "recorded", "prefix"])
def test_each_turn_repeats_the_request_before_it_and_adds_an_answer_and_a_question(api, name):
    requests = requests_of(**WORKLOADS[name] | {"turns": LengthConfig(mean=4), "api": api}, count=8)

    assert [request.turn for request in requests] == [0, 1, 2, 3] * 2
    assert [request.is_last_turn for request in requests] == [False, False, False, True] * 2
    assert [request.sequence for request in requests] == list(range(8))
    for before, after in pairwise(requests):
        if after.turn:
            assert said_in(after)[: len(said_in(before))] == said_in(before)
            assert len(said_in(after)) == len(said_in(before)) + 2


def test_who_said_what_alternates_and_the_user_has_the_last_word():
    first, second, third = requests_of(turns=LengthConfig(mean=3), count=3)

    assert speakers_in(first) == ["user"]
    assert speakers_in(second) == ["user", "assistant", "user"]
    assert speakers_in(third) == ["user", "assistant", "user", "assistant", "user"]


def test_a_generated_answer_is_as_long_as_the_one_that_was_asked_for():
    requests = requests_of(turns=LengthConfig(mean=5), count=5)

    answers = said_in(requests[-1])[1::2]
    assert [len(answer) for answer in answers] == [CHARS_PER_TOKEN * request.max_tokens for request in requests[:-1]]


def test_a_recorded_conversation_is_repeated_with_its_answers():
    requests = requests_of(prompts=[RECORDED], turns=LengthConfig(mean=3), count=3)

    question, answer, second, generated, third = said_in(requests[2])
    assert (question, answer, second, third) == ("Why?", "So.", "And?", "Well?")
    assert len(generated) == CHARS_PER_TOKEN * requests[1].max_tokens
    assert {request.prompt_id for request in requests} == {"r"}


def test_when_a_recording_ends_other_prompts_of_its_domain_go_on():
    others = [Prompt("o1", "law", "One?", answers=("First.",)), Prompt("o2", "law", "Two?", answers=("Second.",))]
    prompts = [RECORDED, *others, Prompt("m", "math", "Never?")]
    requests = requests_of(prompts=prompts, mixture={"law": 1}, turns=LengthConfig(mean=6), count=600)

    assert {request.domain for request in requests} == {"law"}
    assert not any("Never?" in said_in(request) for request in requests)
    long = next(said_in(request) for request in requests if request.turn == 5 and said_in(request)[0] == "Why?")
    assert long[:5:2] == ["Why?", "And?", "Well?"]
    answers = {"One?": "First.", "Two?": "Second.", "Why?": "So."}
    assert [answers[question] for question in long[6:-1:2]] == long[7::2]


def test_the_number_of_turns_is_drawn_for_each_conversation():
    requests = requests_of(turns=LengthConfig(kind="uniform", low=1, high=4, mean=2), count=2000)
    lengths = Counter(request.turn + 1 for request in requests if request.is_last_turn)

    assert set(lengths) == {1, 2, 3, 4}
    assert all(after.turn == (0 if now.is_last_turn else now.turn + 1) for now, after in pairwise(requests))


def test_a_conversation_begins_with_one_of_the_shared_prefixes_as_a_system_message():
    requests = requests_of(prefix=PrefixConfig(20, 3), turns=LengthConfig(mean=2), count=600)

    prefixes = Counter(said_in(request)[0] for request in requests)
    assert {speakers_in(request)[0] for request in requests} == {"system"}
    assert {len(prefix) for prefix in prefixes} == {20 * CHARS_PER_TOKEN}
    assert len(prefixes) == 3
    assert all(count == pytest.approx(200, rel=0.25) for count in prefixes.values())


def test_a_prefix_stands_before_the_text_of_a_completions_request():
    request = requests_of(prefix=PrefixConfig(20), api="completions")[0]

    prefix, text = said_in(request)
    assert len(prefix) == 20 * CHARS_PER_TOKEN
    assert text == PROMPTS[int(request.prompt_id[1:])].text


def test_the_prefixes_are_the_same_for_all_users_and_change_with_the_seed():
    def prefixes(user, seed):
        requests = requests_of(user, seed=seed, prefix=PrefixConfig(20, 3), count=100)
        return {said_in(request)[0] for request in requests}

    assert prefixes(0, 1) == prefixes(7, 1)
    assert prefixes(0, 1).isdisjoint(prefixes(0, 2))


@pytest.mark.parametrize("api", APIS)
def test_with_a_tokenizer_every_generated_text_has_exactly_its_tokens(api):
    content = msgspec.json.encode(build_tokenizer(demo_text(), 2000)).decode()
    tokenizer = FileTokenizer(Tokenizer.from_str(content), "tokenizer.json")
    lengths = {"input_tokens": LengthConfig(mean=70), "turns": LengthConfig(mean=3), "prefix": PrefixConfig(33, 2)}
    requests = requests_of(tokenizer=tokenizer, prompts=[], format="synthetic", api=api, count=3, **lengths)

    first, second = requests[0].max_tokens, requests[1].max_tokens
    assert [tokenizer.count(text) for text in said_in(requests[2])] == [33, 70, first, 70, second, 70]


def test_an_open_loop_gives_the_lengths_of_its_trace():
    source = source_of(prompts=[], format="synthetic", input_tokens=TRACED, output_tokens=TRACED, trace="azure.csv")
    request = source.draw((30, 7))

    assert (len(said_in(request)[0]), request.max_tokens) == (30 * CHARS_PER_TOKEN, 7)


def test_lengths_of_a_trace_are_taken_as_they_are_and_replace_no_other_kind():
    source = source_of(
        prompts=[], format="synthetic", input_tokens=LengthConfig(mean=9), output_tokens=TRACED, trace="t"
    )
    request = source.draw((30, 70_000))

    assert (len(said_in(request)[0]), request.max_tokens) == (9 * CHARS_PER_TOKEN, 70_000)


def test_a_closed_loop_draws_prompt_and_answer_from_the_same_row():
    rows = [(10, 20), (30, 40), (50, 60)]
    requests = requests_of(
        draw_lengths=lambda random: rows[int(random.integers(3))],
        prompts=[],
        format="synthetic",
        input_tokens=TRACED,
        output_tokens=TRACED,
        trace="t",
        count=60,
    )

    drawn = Counter((len(said_in(request)[0]) // CHARS_PER_TOKEN, request.max_tokens) for request in requests)
    assert set(drawn) == set(rows)


def test_a_length_from_a_trace_without_a_row_is_refused():
    with pytest.raises(ConfigError, match=r"Set workload\.trace=FILE"):
        source_of(output_tokens=TRACED, trace="t").draw()


def test_a_request_that_brings_its_row_needs_no_trace():
    source = source_of(output_tokens=TRACED, trace="t", arrivals=ArrivalConfig(kind="trace"))
    assert source.draw((1, 50)).max_tokens == 50


def test_a_pool_reads_the_files_of_its_workload(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one", "domain": "law"}\n')
    (tmp_path / "tokenizer.json").write_bytes(msgspec.json.encode(build_tokenizer(demo_text(), 2000)))
    workload = WorkloadConfig(
        prompts=str(tmp_path / "prompts.jsonl"), tokenizer=str(tmp_path), prefix=PrefixConfig(40), mixture={"law": 1}
    )

    request = RequestSource(0, 1, "auto", workload, build_pool(workload, 1)).draw()

    prefix, text = said_in(request)
    assert (text, request.domain) == ("one", "law")
    assert read_tokenizer(str(tmp_path)).count(prefix) == 40


def test_a_pool_of_synthetic_texts_reads_no_prompts():
    workload = WorkloadConfig(format="synthetic", prompts="nowhere.jsonl")
    request = RequestSource(0, 1, "auto", workload, build_pool(workload, 1)).draw()
    assert request.prompt_id == "synthetic-0-0"


def test_two_processes_build_the_same_pool():
    workload = WorkloadConfig(prefix=PrefixConfig(20, 3), mixture={"math": 0.5, "law": 0.5})
    one, other = build_pool(workload, 1), build_pool(workload, 1)

    assert one is not other
    assert [RequestSource(5, 1, "auto", workload, one).draw() for _ in range(3)] == [
        RequestSource(5, 1, "auto", workload, other).draw() for _ in range(3)
    ]


def test_no_heavy_library_is_loaded_until_a_file_needs_it():
    code = (
        "import sys; from erhpc.config import WorkloadConfig; from erhpc.workload.pool import build_pool; "
        "build_pool(WorkloadConfig(), 1); print(sorted({'pyarrow', 'tokenizers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

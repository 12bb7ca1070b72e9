from __future__ import annotations

import msgspec
import pytest
from numpy.random import SeedSequence, default_rng

from erhpc.config import LengthConfig, WorkloadConfig
from erhpc.corpus.prompts import Prompt
from erhpc.errors import InputError
from erhpc.load.requests import LoadRequest, RequestSource, choose_prompts
from erhpc.load.texts import write_text
from erhpc.plan.protocol import CHARS_PER_TOKEN

PROMPTS = [Prompt(f"p{number}", "math" if number % 2 else "law", f"Question {number}?") for number in range(50)]


def requests_of(user: int, *, count: int = 20, seed: int = 1, **workload: object) -> list[LoadRequest]:
    config = WorkloadConfig(output_tokens=LengthConfig(kind="uniform", low=1, high=64, mean=32), **workload)
    source = RequestSource(user, seed, "auto", config, PROMPTS)
    return [source.draw() for _ in range(count)]


def test_the_same_seed_gives_a_user_the_same_requests():
    assert requests_of(3) == requests_of(3)


def test_another_seed_gives_a_user_other_requests():
    assert requests_of(3, seed=1) != requests_of(3, seed=2)


def test_two_users_ask_different_things():
    assert requests_of(3) != requests_of(4)


def test_a_users_stream_is_the_one_that_spawning_gives_whatever_the_number_of_users():
    assert SeedSequence(1).spawn(5)[3].spawn_key == SeedSequence(1).spawn(1000)[3].spawn_key == (3,)
    expected = default_rng(SeedSequence(1).spawn(1000)[3]).integers(len(PROMPTS))
    assert requests_of(3)[0].prompt_id == f"p{expected}"


def test_a_chat_request_asks_for_a_stream_with_usage():
    request = requests_of(0, api="chat", temperature=0.5)[0]
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
    body = msgspec.json.decode(requests_of(0, api="completions")[0].body)
    assert body["prompt"].startswith("Question")
    assert "messages" not in body


def test_ignore_eos_is_left_out_for_servers_that_do_not_know_it():
    assert "ignore_eos" not in msgspec.json.decode(requests_of(0, ignore_eos=False)[0].body)


def test_a_synthetic_request_has_a_prompt_of_about_the_tokens_asked_for():
    request = requests_of(2, format="synthetic", input_tokens=LengthConfig(mean=100))[5]
    text = msgspec.json.decode(request.body)["messages"][0]["content"]
    assert (request.prompt_id, request.domain, len(text)) == ("synthetic-2-5", "", 100 * CHARS_PER_TOKEN)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 256])
def test_a_synthetic_text_has_exactly_four_characters_per_token(tokens: int):
    assert len(write_text(tokens, default_rng(0))) == 4 * tokens


def test_only_prompts_of_the_domains_asked_for_are_used():
    assert {prompt.domain for prompt in choose_prompts(PROMPTS, ["law"])} == {"law"}
    assert choose_prompts(PROMPTS, []) == PROMPTS


def test_a_domain_without_a_prompt_is_refused_with_the_domains_there_are():
    with pytest.raises(InputError, match=r"domain chess.*law, math"):
        choose_prompts(PROMPTS, ["law", "chess"])

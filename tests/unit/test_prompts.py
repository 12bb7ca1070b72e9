"""What a prompts file may look like, what the shipped corpus holds, and how a wrong file is answered."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from erhpc.corpus.domains import check_domains, group_by_domain
from erhpc.corpus.prompts import Prompt, demo_text, hash_source, read_prompts
from erhpc.errors import ConfigError, InputError


@pytest.fixture
def write(tmp_path):
    """Write `content` (bytes, text, or a value to become JSON) to a file and return its path."""

    def write_file(content):
        path = tmp_path / "prompts.json"
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content if isinstance(content, bytes) else msgspec.json.encode(content))
        return str(path)

    return write_file


def test_the_demo_corpus_has_512_different_prompts_in_8_domains_of_equal_size():
    prompts = read_prompts("demo")
    assert len({prompt.text for prompt in prompts}) == len({prompt.prompt_id for prompt in prompts}) == 512
    assert list(Counter(prompt.domain for prompt in prompts).values()) == [64] * 8


def test_the_demo_prompts_are_questions_of_8_to_90_words_and_35_or_more_on_average():
    lengths_words = [len(prompt.text.split()) for prompt in read_prompts("demo")]
    assert min(lengths_words) >= 8
    assert max(lengths_words) <= 90
    assert 35 <= sum(lengths_words) / 512 <= 45


def test_no_demo_prompt_shares_more_than_half_its_words_with_another():
    bags = [frozenset(prompt.text.lower().split()) for prompt in read_prompts("demo")]
    for i, bag in enumerate(bags):
        assert all(len(bag & other) <= len(bag | other) / 2 for other in bags[:i])


def test_the_id_of_a_demo_prompt_names_its_domain():
    assert all(prompt.prompt_id.startswith(f"{prompt.domain}-") for prompt in read_prompts("demo"))


def test_the_demo_corpus_is_read_whatever_format_is_asked_for():
    assert read_prompts("demo", "sharegpt") == read_prompts("demo")


def test_the_demo_text_holds_every_demo_prompt():
    text = demo_text()
    assert all(prompt.text in text for prompt in read_prompts("demo"))


def test_a_jsonl_line_gives_id_domain_and_text(write):
    source = write('{"id": "a7", "domain": "law", "prompt": "May I?", "licence": "CC0"}\n')
    assert read_prompts(source) == [Prompt("a7", "law", "May I?")]


def test_a_jsonl_line_without_id_is_known_by_its_line_number_and_has_no_domain(write):
    source = write('\n{"prompt": "one"}\r\n\n{"prompt": "two", "id": null, "domain": null}')
    assert read_prompts(source) == [Prompt("2", "", "one"), Prompt("4", "", "two")]


def test_a_jsonl_id_may_be_a_number(write):
    assert read_prompts(write('{"id": 0, "prompt": "one"}'))[0].prompt_id == "0"


def test_a_unicode_line_separator_inside_a_prompt_does_not_end_the_line(write):
    assert read_prompts(write('{"prompt": "a\u2028b\x85c"}'))[0].text == "a\u2028b\x85c"


def test_a_byte_order_mark_is_ignored(write):
    assert read_prompts(write(b'\xef\xbb\xbf{"prompt": "one"}'))[0].text == "one"


KEYS = [("conversations", "from", "value", "human", "gpt"), ("messages", "role", "content", "user", "assistant")]


@pytest.fixture(params=KEYS, ids=["sharegpt", "chat"])
def record(request, write):
    """Write a file of one conversation `c1`, given as (speaker, text) with H for the human and A for who answers."""
    turns, speaker, content, human, answering = request.param

    def write_conversation(*said):
        names = {"H": human, "A": answering}
        turns_said = [{speaker: names.get(who, who), content: text} for who, text in said]
        return write([{"id": "c1", "domain": "law", turns: turns_said}])

    return write_conversation


def test_a_conversation_begins_with_its_first_human_turn(record):
    source = record(("H", " "), ("system", "Be brief."), ("A", "Hello!"), ("H", "Why?"))
    assert read_prompts(source, "sharegpt") == [Prompt("c1", "law", "Why?")]


def test_a_conversation_keeps_its_later_turns_and_the_answers_to_each(record):
    [prompt] = read_prompts(record(("H", "Why?"), ("A", "So."), ("H", "And?"), ("A", "Thus.")), "sharegpt")
    assert prompt == Prompt("c1", "law", "Why?", later=("And?",), answers=("So.", "Thus."))
    assert prompt.turns == ("Why?", "And?")


def test_a_turn_that_nobody_answered_has_an_empty_answer(record):
    [prompt] = read_prompts(record(("H", "Why?"), ("H", "Well?"), ("A", "So."), ("H", "Oh.")), "sharegpt")
    assert prompt == Prompt("c1", "law", "Why?", later=("Well?", "Oh."), answers=("", "So.", ""))


def test_answers_in_a_row_are_one(record):
    [prompt] = read_prompts(record(("H", "Why?"), ("A", "So."), ("A", "And so."), ("tool", "7")), "sharegpt")
    assert prompt.answers == ("So.\n\nAnd so.",)


def test_conversations_without_a_human_turn_are_skipped_and_keep_their_number(write):
    human = {"conversations": [{"from": "human", "value": "Why?"}]}
    odd_turns = {"messages": [None, {"role": "user", "content": [{"type": "image"}]}, {"role": ["user"]}]}
    source = write([{"conversations": []}, {"conversations": [{"from": "gpt", "value": "Hi"}]}, odd_turns, human])
    assert read_prompts(source, "sharegpt") == [Prompt("4", "", "Why?")]


def test_a_missing_file_is_named_together_with_the_corpus_that_is_always_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl .* cannot be read: No such file.*demo"):
        read_prompts(str(tmp_path / "nowhere.jsonl"))


def test_a_directory_is_no_prompts_file(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_prompts(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "kind"), [("", "jsonl"), ("\n \n", "jsonl"), ("[]", "sharegpt"), ('[{"messages": []}]', "sharegpt")]
)
def test_a_file_without_a_prompt_is_an_error_that_shows_what_is_expected(write, content, kind):
    with pytest.raises(InputError, match=r"prompts\.json has no prompt\. Expected: .*JSON"):
        read_prompts(write(content), kind)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "cut', "no JSON in UTF-8"),
        (b'{"prompt": "\xff"}', "no JSON in UTF-8"),
        ('["one"]', "a list instead of an object"),
        ("7", "a number instead of an object"),
        ('{"text": "one"}', "field `prompt` is missing or null"),
        ('{"prompt": {}}', "field `prompt` is an object instead of a string"),
        ('{"prompt": " "}', "field `prompt` is empty"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number_with_what_is_expected(write, line, problem):
    line = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(InputError, match=rf"prompts\.json, line 2: {problem}.*Expected: one JSON object per line"):
        read_prompts(write(b'{"prompt": "one"}\n' + line + b"\n"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"prompt": "one"}\n{"prompt": "two"}', r"prompts\.json: no JSON"),
        ("{}", r"prompts\.json: an object instead of a list"),
        ("[true]", "entry 1: a boolean instead of an object"),
        ('[{"conversations": []}, {"id": "2"}]', "entry 2: no list of turns under conversations or"),
    ],
)
def test_a_malformed_sharegpt_file_says_which_entry_is_wrong(write, content, problem):
    with pytest.raises(InputError, match=rf"{problem}.*Expected: a JSON list"):
        read_prompts(write(content), "sharegpt")


def test_an_unknown_format_is_an_error_that_lists_the_formats():
    with pytest.raises(ConfigError, match=r"'csv' is not known\. Allowed: jsonl, sharegpt, dataset"):
        read_prompts("prompts.csv", "csv")


def test_prompts_are_grouped_by_domain_in_the_order_of_names():
    math, law, bare = Prompt("1", "math", "m"), Prompt("2", "law", "l"), Prompt("3", "", "b")
    groups = group_by_domain([math, law, bare, math])
    assert list(groups.items()) == [("", [bare]), ("law", [law]), ("math", [math, math])]


def test_a_share_of_a_domain_without_a_prompt_is_refused_with_the_domains_there_are():
    prompts = [Prompt("1", "math", "m"), Prompt("2", "law", "l")]
    check_domains(["law"], prompts)
    with pytest.raises(InputError, match=r"workload\.mixture: no prompt is of domain chess\..*have: law, math\."):
        check_domains(["law", "chess"], prompts)


def test_the_hash_of_a_file_is_that_of_its_bytes(write):
    assert hash_source(write("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

"""What a dataset on disk may look like, which split is read, and how a wrong one is answered."""

from __future__ import annotations

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erhpc.corpus.dataset import find_split
from erhpc.corpus.prompts import Prompt, hash_source, read_prompts
from erhpc.errors import InputError

TURNS = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}, {"from": "human", "value": "And?"}]


def write_parquet(path, column="prompt", values=("one",), **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: list(values), **columns}), path)


def write_arrow(path, column="prompt", values=("one",), *, opener=pa.ipc.new_stream, metadata=None, **columns):
    """Write a stream of two batches, as `save_to_disk` does, or a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({column: list(values), **columns}).replace_schema_metadata(metadata)
    with path.open("wb") as file, opener(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(value))


def texts_of(folder, **columns):
    return [prompt.text for prompt in read_prompts(str(folder), "dataset", **columns)]


def test_a_repository_gives_the_rows_of_its_train_split_in_order_of_files(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", values=["three"])
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", values=["one", "two"])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", values=["no"])

    assert texts_of(tmp_path) == ["one", "two", "three"]
    split = find_split(str(tmp_path))
    assert (split.name, split.others) == ("train", ("test",))


@pytest.mark.parametrize(
    ("names", "split", "files"),
    [
        (["train.parquet", "test.parquet"], "train", ["train.parquet"]),
        (["part-0.parquet", "part-1.parquet"], "", ["part-0.parquet", "part-1.parquet"]),
        (["default/test/0000.parquet", "default/train/0000.parquet"], "train", ["default/train/0000.parquet"]),
        (["data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "test", None),
        (["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"], "train_sft", None),
        (["train-00000-of-00001.parquet", ".cache/train-00000-of-00001.parquet"], "train", None),
        (["a/math-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], "train", None),
    ],
)
def test_the_split_is_train_or_else_the_first(tmp_path, names, split, files):
    for name in names:
        write_parquet(tmp_path / name)

    found = find_split(str(tmp_path))

    assert found.name == split
    if files is not None:
        assert [path.relative_to(tmp_path).as_posix() for path in found.files] == files
    assert len(found.files) == len(files or ["one"])


def test_a_split_in_several_folders_is_refused_with_the_folders(tmp_path):
    for folder in ("main", "socratic"):
        write_parquet(tmp_path / folder / "train-00000-of-00001.parquet")

    with pytest.raises(InputError, match=r"split 'train' in several folders: main, socratic\. Name one.*/main\.$"):
        find_split(str(tmp_path))
    assert texts_of(tmp_path / "socratic") == ["one"]


def test_what_save_to_disk_wrote_is_read(tmp_path):
    for number, text in enumerate(["one", "two"]):
        write_arrow(tmp_path / f"data-0000{number}-of-00002.arrow", values=[text, text + "!"])
    write_json(tmp_path / "dataset_info.json", {})

    assert texts_of(tmp_path) == ["one", "one!", "two", "two!"]


def test_caches_and_shards_that_were_overwritten_are_not_read(tmp_path):
    for name in ("data-00000-of-00001", "data-00001-of-00002", "cache-f00d"):
        write_arrow(tmp_path / f"{name}.arrow", values=[name])
    write_json(tmp_path / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    assert texts_of(tmp_path) == ["data-00000-of-00001"]

    (tmp_path / "state.json").unlink()
    assert texts_of(tmp_path) == ["data-00000-of-00001", "data-00001-of-00002"]


def test_of_several_saved_splits_one_is_read(tmp_path):
    write_json(tmp_path / "dataset_dict.json", {"splits": ["hard", "easy"]})
    for split in ("hard", "easy"):
        write_arrow(tmp_path / split / "data-00000-of-00001.arrow", values=[split])

    assert texts_of(tmp_path) == ["easy"]
    assert find_split(str(tmp_path)).others == ("hard",)
    assert texts_of(tmp_path / "hard") == ["hard"]


def test_one_file_is_a_dataset_too(tmp_path):
    write_parquet(tmp_path / "test.parquet", values=["one"])
    write_arrow(tmp_path / "test.arrow", values=["two", "three"], opener=pa.ipc.new_file)

    assert texts_of(tmp_path / "test.parquet") == ["one"]
    assert texts_of(tmp_path / "test.arrow") == ["two", "three"]


def test_the_columns_may_have_other_names_and_prompts_keep_id_and_domain(tmp_path):
    write_parquet(tmp_path / "a.parquet", "question", ["one", "two"], topic=["law", None], id=[7, None], score=[1, 2])

    prompts = read_prompts(str(tmp_path), "dataset", prompt_column="question", domain_column="topic")

    assert prompts == [Prompt("7", "law", "one"), Prompt("2", "", "two")]


def test_rows_without_a_text_are_skipped_and_keep_their_number(tmp_path):
    write_parquet(tmp_path / "a.parquet", values=[None, " ", "one"])

    assert read_prompts(str(tmp_path), "dataset") == [Prompt("3", "", "one")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (TURNS, Prompt("1", "", "Why?", ("And?",), ("So.", ""))),
        (
            [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
            Prompt("1", "", "Why?", (), ("So.",)),
        ),
        ({"from": ["human", "gpt"], "value": ["Why?", "So."]}, Prompt("1", "", "Why?", (), ("So.",))),
        (["Why?", "And?"], Prompt("1", "", "Why?", ("And?",))),
    ],
)
@pytest.mark.parametrize(("write", "suffix"), [(write_parquet, "parquet"), (write_arrow, "arrow")])
def test_a_column_may_hold_turns(tmp_path, value, expected, write, suffix):
    write(tmp_path / f"a.{suffix}", "conversations", [value])

    assert read_prompts(str(tmp_path), "dataset", prompt_column="conversations") == [expected]


def test_a_domain_given_as_the_number_of_a_class_gets_its_name(tmp_path):
    features = {"domain": {"names": ["law", "math"], "_type": "ClassLabel"}, "prompt": {"dtype": "string"}}
    metadata = {"huggingface": msgspec.json.encode({"info": {"features": features}})}
    write_arrow(tmp_path / "a.arrow", values=["one", "two", "three"], domain=[1, 0, -1], metadata=metadata)

    assert [prompt.domain for prompt in read_prompts(str(tmp_path), "dataset")] == ["math", "law", ""]


def test_a_missing_folder_is_named_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=rf"nowhere \(looked for at {tmp_path}/nowhere\) does not exist\. Expected:"):
        read_prompts(str(tmp_path / "nowhere"), "dataset")


def test_a_folder_without_such_files_says_what_is_expected(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"has no prompt files\. Expected: a folder with \*\.parquet"):
        read_prompts(str(tmp_path), "dataset")


def test_a_missing_column_is_answered_with_the_columns_there_are(tmp_path):
    write_parquet(tmp_path / "a.parquet", "question", ["one"], topic=["law"])
    with pytest.raises(InputError, match=r"no column 'prompt'\. It has: question, topic\. Set workload\.prompt_column"):
        read_prompts(str(tmp_path), "dataset")


def test_a_column_that_holds_no_text_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", values=[1.5])
    with pytest.raises(InputError, match=r"row 1, column 'prompt': a number instead of a text or turns"):
        read_prompts(str(tmp_path), "dataset")


@pytest.mark.parametrize("rows", [[], [None], [" "]])
def test_a_dataset_without_a_text_is_an_error(tmp_path, rows):
    write_parquet(tmp_path / "a.parquet", values=pa.array(rows, pa.string()))
    with pytest.raises(InputError, match="has no prompt"):
        read_prompts(str(tmp_path), "dataset")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"no dataset", b"ARROW1 cut"])
def test_an_unreadable_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be read: .*Expected: a folder"):
        read_prompts(str(tmp_path), "dataset")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_file_that_was_cut_is_named(tmp_path, suffix):
    write = write_parquet if suffix == "parquet" else write_arrow
    write(tmp_path / f"a.{suffix}", values=["one"] * 100)
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(whole[: len(whole) // 2 - 3])

    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(str(tmp_path), "dataset")


@pytest.mark.parametrize("state", [b"{", b"{}", b'{"_data_files": 3}', b'{"_data_files": [{}]}'])
def test_a_damaged_state_of_a_saved_dataset_is_named(tmp_path, state):
    write_arrow(tmp_path / "data-00000-of-00001.arrow")
    (tmp_path / "state.json").write_bytes(state)
    with pytest.raises(InputError, match=r"state\.json cannot be read"):
        read_prompts(str(tmp_path), "dataset")


def test_the_hash_of_a_dataset_is_that_of_the_files_that_are_read(tmp_path):
    write_parquet(tmp_path / "train.parquet", values=["one"])
    before = hash_source(str(tmp_path))
    write_parquet(tmp_path / "test.parquet", values=["two"])
    assert hash_source(str(tmp_path)) == before

    write_parquet(tmp_path / "train.parquet", values=["other"])
    assert hash_source(str(tmp_path)) != before

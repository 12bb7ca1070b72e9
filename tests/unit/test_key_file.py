"""The file of a key: what is read of it, and what every process says of one that cannot be used."""

from __future__ import annotations

import pytest

from erhpc.errors import InputError
from erhpc.key_file import read_key_file


@pytest.mark.parametrize("content", [b"sk-1.2_3~+/=", b"sk-1.2_3~+/=\n", b"\r\n  sk-1.2_3~+/=\t\r\n\n"])
def test_a_key_is_the_one_line_of_its_file_without_the_blanks_around_it(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    assert read_key_file("key", tmp_path / "key") == "sk-1.2_3~+/="


def test_without_a_file_there_is_no_key():
    assert read_key_file("key", None) is None


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b" \r\n\t", "is empty"),
        (b"one\ntwo\n", "holds 2 lines"),
        (b"one\rtwo", "holds 2 lines"),
        (b"a key", "holds what is no key"),
        ("schlüssel".encode(), "holds what is no key"),
        (b"\xff\xfe", "holds what is no key"),
        (b"a\x00b", "holds what is no key"),
    ],
)
def test_a_file_that_holds_no_key_or_several_is_refused_and_what_it_holds_is_not_told(tmp_path, content, what):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match=rf"^expert_key={tmp_path}/key {what}\b") as caught:
        read_key_file("expert_key", str(tmp_path / "key"))
    assert "one" not in str(caught.value).partition(what)[2].split()[:2]
    assert "schl" not in str(caught.value)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused_with_the_reason(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read: No such file or directory\. Give a file with the key"):
        read_key_file("key", tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_key_file("key", tmp_path)

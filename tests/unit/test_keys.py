"""Files of keys: what they say, how they change, and that no key is ever told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.errors import InputError
from erhpc.gateway.keys import OWNER, Holder, KeyRing, parse_keys

SECRET = "sk-t0p-s3cret"


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def ring(path: Path | None, own: str | None = None, num_slots: int = 64) -> KeyRing:
    return KeyRing(own, str(path) if path else None, num_slots=num_slots)


def name_of(keys: KeyRing, key: str) -> str | None:
    holder = keys.find(bearer(key))
    return holder.name if holder else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def rewrite(path: Path, text: str) -> None:
    """Replace the file as users do: a new one in its place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_without_any_key_everyone_may_ask():
    assert ring(None).is_open
    assert not ring(None, "own").is_open


def test_the_keys_of_the_file_and_the_runs_own_are_known_and_no_other(path: Path):
    path.write_text(f"# who may ask\n\n ann  {SECRET} \nbob\tb-1\nbob b-2\r\n#eve e-1\n")
    keys = ring(path, "own")
    assert keys.find(bearer("own")) is OWNER
    assert [name_of(keys, key) for key in (SECRET, "b-1", "b-2")] == ["ann", "bob", "bob"]
    for given_field in (
        b"",
        b"own",
        b"Bearer ",
        b"Bearer ann",
        bearer("e-1"),
        bearer("ow"),
        b"Basic b-1",
    ):
        assert keys.find(given_field) is None, given_field
    assert keys.find(b"bearer b-1 ") == keys.find(bearer("b-2"))


@given(st.binary(max_size=40))
def test_no_field_of_random_bytes_is_a_key_and_none_is_an_error(field: bytes):
    keys = KeyRing("own", None, num_slots=4)
    assert (keys.find(field) is not None) == (field == b"Bearer own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        (f"ann {SECRET}\n{SECRET}\n", "line 2: 1 words"),
        (f"# first\n\nann my {SECRET}\n", "line 3: 3 words"),
        (f"ann {SECRET}\nbob {SECRET}2\ncarl {SECRET}3\n", "3 names. Allowed: up to 2"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line_and_without_a_key(text: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        parse_keys(text, "/k", 2)
    assert "gateway.keys=/k" in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [None, b"ann \xff" + SECRET.encode()])
def test_a_file_that_cannot_be_read_is_told_without_its_content(path: Path, content: bytes | None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read: .*Give a file of lines") as caught:
        ring(path)
    assert SECRET not in str(caught.value)


def test_a_changed_file_is_followed_and_users_may_hold_two_keys_meanwhile(path: Path):
    path.write_text("ann old\n")
    keys = ring(path)
    rewrite(path, "ann old\nann new\nbob b-1\n")
    assert name_of(keys, "new") is None
    keys.refresh()
    assert [name_of(keys, key) for key in ("old", "new", "b-1")] == ["ann", "ann", "bob"]
    rewrite(path, "ann new\n")
    keys.refresh()
    assert [name_of(keys, key) for key in ("old", "new", "b-1")] == [None, "ann", None]


def test_a_file_written_anew_in_the_same_moment_with_the_same_length_is_noticed(path: Path):
    path.write_text("ann k-1\n")
    keys = ring(path)
    written_ns = path.stat().st_mtime_ns
    rewrite(path, "ann k-2\n")
    os.utime(path, ns=(written_ns, written_ns))
    keys.refresh()
    assert name_of(keys, "k-2") == "ann"


@pytest.mark.parametrize("bad", [None, "", f"ann {SECRET} x\n"])
def test_when_the_file_cannot_be_used_the_known_keys_stay_until_it_can(path: Path, bad: str | None):
    path.write_text("ann k-1\n")
    keys = ring(path)
    if bad is None:
        path.unlink()
    else:
        rewrite(path, bad)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            keys.refresh()
        assert SECRET not in str(caught.value)
        assert name_of(keys, "k-1") == "ann"
    rewrite(path, "ann k-2\n")
    keys.refresh()
    assert [name_of(keys, key) for key in ("k-1", "k-2")] == [None, "ann"]


def test_nothing_that_is_printed_of_a_ring_or_a_holder_tells_a_key(path: Path):
    path.write_text(f"ann {SECRET}\n")
    keys = ring(path, SECRET + "-own")
    shown = [repr(keys), str(keys), repr(keys.find(bearer(SECRET))), repr(keys.find(bearer(SECRET + "-own")))]
    assert not any(SECRET in text for text in shown)


NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=20, unique=True)


@given(NAMES)
def test_every_name_has_a_slot_of_its_own_that_all_its_keys_share_whatever_the_order(names: list[str]):
    lines = [f"{name} {name}-{number}" for name in names for number in (1, 2)]
    holders = parse_keys("\n".join(lines), "/k", 20)
    assert holders == parse_keys("\n".join(reversed(lines)), "/k", 20)
    assert len({holder.slot for holder in holders.values()}) == len(names)
    assert {holder.name for holder in holders.values()} == set(names)
    assert all(holder.slot is not None and 0 <= holder.slot < 20 for holder in holders.values())


def test_a_name_keeps_its_slot_when_others_come_and_go(path: Path):
    def slots(text: str) -> dict[str, int | None]:
        return {holder.name: holder.slot for holder in parse_keys(text, "/k", 1024).values()}

    before, after = slots("ann a\nbob b\ncarl c\n"), slots("bob b2\ndora d\nann a\n")
    assert {name: before[name] for name in ("ann", "bob")} == {name: after[name] for name in ("ann", "bob")}


def test_the_runs_own_key_has_no_slot():
    assert Holder("run", None) == OWNER

"""Reads the file of one key: the bearer token of a run, of a server or of a user."""

from __future__ import annotations

from pathlib import Path

from erhpc.errors import InputError


def read_key_file(name: str, path: str | Path | None) -> str | None:
    """The key in the file `path`, its one line without the blanks around it; None without a path.

    `name` is the setting that names the file.

    Raises:
        InputError: it cannot be read, or holds no key or more than one: no server may stand open by accident, and no
            client send what is no header.
    """
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{name}={path} cannot be read: {error.strerror}. Give a file with the key.") from error
    key = content.strip()
    if not key:
        raise InputError(f"{name}={path} is empty. Give a file with the key.")
    if len(key.splitlines()) > 1:
        raise InputError(
            f"{name}={path} holds {len(key.splitlines())} lines. Give a file with one key and nothing else."
        )
    if not all(0x20 < byte < 0x7F for byte in key):
        raise InputError(f"{name}={path} holds what is no key. Allowed: ASCII letters, digits and marks, no blanks.")
    return key.decode("ascii")

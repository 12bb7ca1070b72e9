"""Files that appear whole or not at all: written beside their place, flushed to disk, then renamed.

It knows no format; whoever writes a file that another process or a later day reads goes through here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace `path` by `data`; a reader sees the old bytes or the new ones, even across a crash.

    `mode` are the permissions before the umask: 0o600 for a file that holds a key.
    Raises OSError if the folder of `path` is missing or full; the old file then stays as it was.
    """
    with replacing(path, mode) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Lend an empty file beside `path` to write into; it takes the place of `path` when the block succeeds.

    When the block raises, the lent file is removed and `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # Some network file systems refuse to flush a folder; the file itself is on disk already.
    with contextlib.suppress(OSError):
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

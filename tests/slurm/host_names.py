"""Gives names such as n1 an address in /etc/hosts for as long as their owner lives.

It does not know Slurm. Each line it adds ends in a marker with the owner's folder, so that several owners can use the
same names side by side, lines of a crashed owner are found and taken out, and no other line is ever touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

MARKER = "# erhpc miniature slurm in "
_OWNER = re.compile(rf"{MARKER}(?P<folder>\S+)$")


def add_names(hosts: Path, owner: Path, addresses: Mapping[str, str]) -> None:
    """Append one marked line per name of `addresses` (name -> address) to `hosts`."""
    with _locked_folder(hosts.parent):
        text = hosts.read_text()
        start = text if not text or text.endswith("\n") else f"{text}\n"
        _replace(hosts, start + "".join(f"{address} {name} {MARKER}{owner}\n" for name, address in addresses.items()))


def remove_names(hosts: Path, owner: Path) -> None:
    """Take the lines of `owner` out of `hosts`; every other line stays as it is."""
    with _locked_folder(hosts.parent):
        lines = hosts.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _owner_of(line) != owner]
        if len(kept) != len(lines):
            _replace(hosts, "".join(kept))


def list_owners(hosts: Path) -> set[Path]:
    """Return the folder of every owner that has lines in `hosts`."""
    return {owner for line in hosts.read_text().splitlines() if (owner := _owner_of(line))}


def _owner_of(line: str) -> Path | None:
    found = _OWNER.search(line.rstrip())
    return Path(found["folder"]) if found else None


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.erhpc-{os.getpid()}")
    try:
        draft.write_text(text)
        draft.chmod(path.stat().st_mode & 0o777)
        draft.replace(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        path.write_text(text)  # a container's /etc/hosts is a mount point, which no file can replace
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()

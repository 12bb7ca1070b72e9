"""Who may ask: the key of the run, and those of a file that may change while the gateway runs.

The own key is compared in constant time, the others are kept and looked up as their SHA-256, so that how long a wrong
guess takes tells nothing of a key; none is ever printed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sys
from dataclasses import dataclass
from pathlib import Path

from erhpc.errors import InputError

REFRESH_S = 1.0
"""How often the file of keys is looked at."""
_SCHEME = b"bearer "


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose key it is; `slot` is where its requests are counted, None: they are not (the run's own key)."""

    name: str
    slot: int | None


OWNER = Holder("run", None)


class KeyRing:
    """The keys that are accepted: `own` without a limit, and those in the file `path`, one `NAME KEY` a line.

    Without either, everyone may ask. Raises InputError if the file cannot be read or is wrong.
    """

    def __init__(self, own: str | None, path: str | None, *, num_slots: int) -> None:
        self._own = own.encode() if own else None
        self._path = Path(path) if path else None
        self._num_slots = num_slots
        self._holders: dict[bytes, Holder] = {}
        self._seen: tuple[int, int, int] | None = None
        if self._path is not None:
            self._holders = self._read(self._path)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return self._own is None and self._path is None

    def find(self, authorization: bytes) -> Holder | None:
        """Whose key the field Authorization holds; None: it is not known."""
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        given = authorization[len(_SCHEME) :].strip()
        if self._own is not None and hmac.compare_digest(given, self._own):
            return OWNER
        return self._holders.get(hashlib.sha256(given).digest()) if self._path is not None else None

    def may_manage(self, authorization: bytes) -> bool:
        """Whether it is for whoever sends this to take replicas out: everyone's where no key is needed."""
        return self.is_open or self.find(authorization) is OWNER

    def refresh(self) -> None:
        """Read the file again if it has changed; due every second or so.

        Raises:
            InputError: it cannot be read, or is wrong; the keys that were known stay, and it is read again next time.
        """
        if self._path is not None and self._identify(self._path) != self._seen:
            self._holders = self._read(self._path)

    def _read(self, path: Path) -> dict[bytes, Holder]:
        try:
            seen, text = self._identify(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise InputError(
                f"gateway.keys={path} cannot be read: {reason}. Give a file of lines `NAME KEY`."
            ) from None
        holders = parse_keys(text, str(path), self._num_slots)
        self._seen = seen
        return holders

    @staticmethod
    def _identify(path: Path) -> tuple[int, int, int] | None:
        """What changes with the file: when it was written, its size, and which file it is."""
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


async def follow(keys: KeyRing, *, tells: bool) -> None:
    """Follow the file of keys, for ever; when it cannot be read, the keys that were known stay.

    `tells`: whether that is said on stderr; one process of a gateway says it.
    """
    told = ""
    while True:
        await asyncio.sleep(REFRESH_S)
        try:
            keys.refresh()
            told = ""
        except InputError as error:
            if str(error) != told and tells:
                told = str(error)
                print(f"gateway: {told} The keys that were known stay.", file=sys.stderr, flush=True)


def parse_keys(text: str, where: str, num_slots: int) -> dict[bytes, Holder]:
    """The keys in lines `NAME KEY` by their SHA-256; lines that begin with # and empty ones say nothing.

    A name gets the same slot in each process, and keeps it while no name is added that needs the same one. A name may
    have several keys: the old one and the new one, while users change over. Raises InputError.
    """
    named: list[tuple[str, bytes]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise InputError(f"gateway.keys={where}, line {number}: {len(words)} words. Write `NAME KEY`.")
        named.append((words[0], hashlib.sha256(words[1].encode()).digest()))
    if not named:
        raise InputError(f"gateway.keys={where} holds no key. Write a line `NAME KEY` for each user.")
    names = sorted({name for name, _ in named})
    if len(names) > num_slots:
        raise InputError(f"gateway.keys={where} has {len(names)} names. Allowed: up to {num_slots}.")
    slots: dict[str, int] = {}
    taken: set[int] = set()
    for name in names:
        slot = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % num_slots
        while slot in taken:
            slot = (slot + 1) % num_slots
        taken.add(slot)
        slots[name] = slot
    return {digest: Holder(name, slots[name]) for name, digest in named}

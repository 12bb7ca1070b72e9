"""Rendezvous hashing: the same key finds the same member, in every process and on every machine.

Pure. It knows nothing of load, experts or replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

_KEY_BYTES = 16
_SCORE_BYTES = 8


class Rendezvous:
    """Finds the member of a key: the one whose hash with the key is highest.

    A member that is not allowed loses its own keys alone, to whichever member comes second for each of them, and gets
    them back once it is allowed again (Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998). Only
    names count, not their order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # Python's hash() of a string differs between processes; BLAKE2b does not.
        self._hashes = tuple(blake2b(name.encode(), digest_size=_SCORE_BYTES) for name in names)

    def find(self, key: str, allowed: Sequence[int]) -> int:
        """The index among the names, one of `allowed` (at least one), that belongs to `key`."""
        # Keys may be long and may hold surrogates (bytes of a header that are no UTF-8); members hash a short digest.
        digest = blake2b(key.encode(errors="surrogatepass"), digest_size=_KEY_BYTES).digest()
        best, highest = allowed[0], b""
        for index in allowed:
            score = self._hashes[index].copy()
            score.update(digest)
            if (value := score.digest()) > highest:
                best, highest = index, value
        return best

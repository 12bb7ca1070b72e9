"""How much a long body holds: counted before anything is made of it, so that no client holds all others up.

Reading a body costs little per byte and much per object: 8 MB of `[1],[1],...` take a hundred times as long as 8 MB of
text. The event loop serves nobody else meanwhile, so the number of things in a body is limited, not only its length.
"""

from __future__ import annotations

from erhpc.gateway.errors import ApiError

MAX_PARTS = 1 << 16
"""Most objects, arrays, names of fields and texts in a body: 13,000 turns of a chat."""
MAX_VALUES = 1 << 20
"""Most values, which may be token numbers."""
MAX_DIGITS = 40
"""Of a number: Python takes the longer per digit, the more there are."""
SHORT_BYTES = 2 * MAX_PARTS
"""Below this there cannot be too many parts: each is two bytes or more."""

_COUNTED = b'"[{,'
_NOT_COUNTED = bytes(set(range(256)) - set(_COUNTED))
_DIGITS_ALIKE = bytes(ord("0") if chr(code) in "123456789" else code for code in range(256))
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)


def check_bulk(raw: bytes, *, reads_numbers: bool) -> None:
    """Raise ApiError 400 if the JSON `raw` holds more than is read in some 50 ms; nothing is said of what is no JSON.

    `reads_numbers`: those in it are not only passed over.
    """
    # What stands in the texts is counted too, which is quick, and enough for nearly all bodies.
    if len(raw) < SHORT_BYTES or not _holds_too_much(raw, reads_numbers=reads_numbers):
        return
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MAX_PARTS or _holds_too_much(
        b'""'.join(bare.split(b'"')[::2]), reads_numbers=reads_numbers
    ):
        raise ApiError(
            400,
            f"The body is long and holds too much. Allowed in one of {SHORT_BYTES} bytes or more: {MAX_PARTS} objects, "
            f"arrays, fields and texts, {MAX_VALUES} values, numbers of {MAX_DIGITS} digits. Send several requests.",
        )


def _holds_too_much(json: bytes, *, reads_numbers: bool) -> bool:
    counted = json.translate(None, _NOT_COUNTED)
    num_commas = counted.count(b",")
    num_parts = counted.count(b'"') // 2 + counted.count(b"[") + counted.count(b"{")
    if num_parts > MAX_PARTS or num_commas >= MAX_VALUES:
        return True
    return reads_numbers and _LONG_NUMBER in json.translate(_DIGITS_ALIKE)

"""Which leading tokens of a prompt an emulated engine has in its cache: whole blocks, the least recently used go first.

Blocks are known by what they hold and all that comes before it, as in vLLM. It counts on its own: the scheduler does
not share blocks between sequences, so the cache is as large as the KV cache, whatever runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from erhpc.plan.memory import BLOCK_TOKENS
from erhpc.plan.protocol import CHARS_PER_TOKEN


class PrefixCache:
    """The blocks that are cached."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def take(self, prompt: str | list[int]) -> int:
        """Leading tokens of `prompt` that are cached; from now on all its whole blocks are."""
        blocks = list(_hash_blocks(prompt))
        cached_blocks = next((n for n, block in enumerate(blocks) if block not in self._blocks), len(blocks))
        # The end of a prompt goes before its beginning, which other prompts may share.
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._num_blocks:
            self._blocks.popitem(last=False)
        return cached_blocks * BLOCK_TOKENS


def _hash_blocks(prompt: str | list[int]) -> Iterator[int]:
    width = BLOCK_TOKENS * (CHARS_PER_TOKEN if isinstance(prompt, str) else 1)
    before = 0
    for start in range(0, len(prompt) - width + 1, width):
        part = prompt[start : start + width]
        before = hash((before, part if isinstance(part, str) else tuple(part)))
        yield before

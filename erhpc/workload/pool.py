"""What all users of a workload share: prompts by domain, shared prefixes, and who writes synthetic texts.

A pool is the same in every client process. It owns no random stream of a user: generators are arguments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from numpy.random import PCG64, Generator, SeedSequence

from erhpc.config import WorkloadConfig
from erhpc.corpus.domains import check_domains, group_by_domain
from erhpc.corpus.prompts import Prompt, read_prompts
from erhpc.errors import ConfigError, InputError
from erhpc.workload.bodies import encode_text
from erhpc.workload.texts import ExactWriter, RoughWriter, TextWriter
from erhpc.workload.tokenizer import read_tokenizer
from erhpc.workload.words import Tokenizer, find_words

DrawLengths = Callable[[Generator], tuple[int, int]]
"""Draws a row of a trace: tokens of the prompt, tokens of the answer."""


class PromptPool:
    """The prompts and texts of a workload.

    Args:
        prompts: may be empty only if the workload's format is synthetic.
        seed: of the workload; it alone decides what the shared prefixes are.
        tokenizer: synthetic texts and prefixes have exact lengths by it; None: four characters are a token.
        draw_lengths: draws rows of the trace, for lengths of kind `trace` of requests that bring no row.

    Raises:
        InputError: there is no prompt, or none of a domain of the mixture, or the tokenizer has no fit words.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        workload: WorkloadConfig,
        seed: int,
        tokenizer: Tokenizer | None = None,
        draw_lengths: DrawLengths | None = None,
    ) -> None:
        self.writer: TextWriter = RoughWriter() if tokenizer is None else ExactWriter(find_words(tokenizer))
        self.prefixes = _write_prefixes(workload, seed, self.writer)
        """The shared prefixes as JSON strings; none if the workload has none."""
        self._prompts = prompts
        self._by_domain = group_by_domain(prompts)
        self._domains, self._shares = _accumulate_shares(workload.mixture)
        self._draw_lengths = draw_lengths
        if not prompts and workload.format != "synthetic":
            raise InputError("The workload has no prompt. Set workload.prompts=FILE, or workload.format=synthetic.")
        check_domains(workload.mixture, prompts)

    def draw_prompt(self, random: Generator) -> Prompt:
        """A prompt: its domain by the shares of the mixture, then evenly; without a mixture evenly among all."""
        if not self._domains:
            return self._prompts[int(random.integers(len(self._prompts)))]
        domain = self._domains[bisect_right(self._shares, random.random() * self._shares[-1], 0, len(self._shares) - 1)]
        return self.draw_prompt_of(domain, random)

    def draw_prompt_of(self, domain: str, random: Generator) -> Prompt:
        """A prompt of a domain, drawn evenly."""
        prompts = self._by_domain[domain]
        return prompts[int(random.integers(len(prompts)))]

    def draw_prefix(self, random: Generator) -> bytes | None:
        """One of the shared prefixes as a JSON string, drawn evenly; None if there are none."""
        if not self.prefixes:
            return None
        return self.prefixes[int(random.integers(len(self.prefixes)))]

    def draw_row(self, random: Generator) -> tuple[int, int]:
        """A row of the trace: tokens of a prompt and its answer. Raises ConfigError if there is no trace."""
        if self._draw_lengths is None:
            raise ConfigError("A length of kind trace needs rows of a trace. Set workload.trace=FILE.")
        return self._draw_lengths(random)


def build_pool(workload: WorkloadConfig, seed: int, draw_lengths: DrawLengths | None = None) -> PromptPool:
    """Read the files of a workload into its pool; the files of a 128,000-token vocabulary take about a second.

    Raises:
        InputError: prompts or tokenizer are missing or malformed, or there is no prompt of a domain of the mixture.
    """
    prompts: list[Prompt] = []
    if workload.format != "synthetic":
        columns = {"prompt_column": workload.prompt_column, "domain_column": workload.domain_column}
        prompts = read_prompts(workload.prompts, workload.format, **columns)
    tokenizer = None if workload.tokenizer is None else read_tokenizer(workload.tokenizer)
    return PromptPool(prompts, workload, seed, tokenizer, draw_lengths)


def _write_prefixes(workload: WorkloadConfig, seed: int, writer: TextWriter) -> list[bytes]:
    """Prefix k comes from the stream (0, k) of the seed; the streams of users are its (0,), (1,) and so on."""
    if not workload.prefix.tokens:
        return []
    streams = (Generator(PCG64(SeedSequence(seed, spawn_key=(0, number)))) for number in range(workload.prefix.count))
    return [encode_text(writer.write(workload.prefix.tokens, random)) for random in streams]


def _accumulate_shares(mixture: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """Domains in the order of their names, and the sum of the shares up to each."""
    shares = {domain: share for domain, share in sorted(mixture.items()) if share > 0}
    return list(shares), list(accumulate(shares.values()))

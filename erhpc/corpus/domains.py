"""Sorts prompts by what they are about. It draws none of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from erhpc.corpus.prompts import Prompt
from erhpc.errors import InputError


def group_by_domain(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts of each domain, in their order; domains in the order of their names, "" for none."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.domain, []).append(prompt)
    return dict(sorted(groups.items()))


def check_domains(wanted: Iterable[str], prompts: Sequence[Prompt]) -> None:
    """Raise InputError, which lists the domains there are, if a wanted one (of workload.mixture) has no prompt."""
    known = group_by_domain(prompts)
    missing = [domain for domain in wanted if domain not in known]
    if missing:
        raise InputError(
            f"workload.mixture: no prompt is of domain {', '.join(missing)}. "
            f"The prompts have: {', '.join(filter(None, known)) or 'none'}. "
            "Give shares to domains among them, or leave the mixture empty to use every prompt."
        )

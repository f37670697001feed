"""Which of two policies people prefer, from labels of pairs that did not say whose a response is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from lorarlhf.intervals import Estimate, wilson
from lorarlhf.preferences.agreement import Vote


@dataclass(frozen=True)
class Duel:
    """Two policies compared.

    Attributes:
        pairs: that were judged, and on how many of them `ties` both won as often.
        won: share of the pairs that the first won, a tie counting half; the interval is over pairs. The second won
            the rest.
    """

    policies: tuple[str, str]
    pairs: int
    ties: int
    won: Estimate


def count_duels(votes: Iterable[Vote]) -> list[Duel]:
    """One for each two policies that were compared, whichever came first in a pair.

    A pair counts once: of several annotators, as the mean of their answers. Repeats do not count.
    """
    judged: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for vote in votes:
        if vote.policies and not vote.repeat:
            first, second = sorted(vote.policies)
            winner = {"a": vote.policies[0], "b": vote.policies[1]}.get(vote.answer)
            judged[first, second][vote.pair].append(0.5 if winner is None else float(winner == first))
    duels = []
    for policies, pairs in sorted(judged.items()):
        outcomes = [fmean(given) for given in pairs.values()]
        duels.append(Duel(policies, len(outcomes), outcomes.count(0.5), wilson(fmean(outcomes), len(outcomes))))
    return duels

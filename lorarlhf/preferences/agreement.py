"""How far people agree, how each of them judges, and what noise in the labels that points to.

The statistics are numpy on purpose: `krippendorff` is under the GPL and needs Python 3.11, and scikit-learn and
statsmodels bring SciPy for what is a few lines each. They are tested against published tables.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Literal

import numpy as np

from lorarlhf.errors import UserError
from lorarlhf.intervals import Estimate, bootstrap, wilson

Side = Literal["a", "b"]
Answer = Literal["a", "b", "tie"]
NoiseFrom = Literal["annotators", "repeats"]

ANSWERS: tuple[Answer, ...] = ("a", "b", "tie")
MOST_DISPUTED = 10
NEAR_CHANCE = 0.45  # a loss smoothed that much has a tenth of its gradient left


@dataclass(frozen=True, slots=True)
class Vote:
    """One person's answer to one pair.

    Attributes:
        left: the response that was shown on the left, if that is known.
        repeat: the pair came back to the same person.
        seconds: how long the answer took.
        longer: the longer response, if that is known and they differ.
        policies: the two that were compared, `a`'s first, if that is known and they differ.
    """

    pair: str
    annotator: str
    answer: Answer
    left: Side | None = None
    repeat: bool = False
    seconds: float | None = None
    longer: Side | None = None
    policies: tuple[str, str] | None = None


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.count / self.of if self.of else math.nan


@dataclass(frozen=True)
class Annotator:
    """How one person judges.

    Attributes:
        with_majority: agreement with what most of the others say, over pairs where they have such a majority.
        self_consistency: the same answer when a pair came back.
        left, longer: choosing the left, or the longer, response, over the pairs decided for one; 0.5 is no bias.
        seconds: median time of an answer.
    """

    name: str
    votes: int
    ties: int
    with_majority: Share
    self_consistency: Share
    left: Share
    longer: Share
    seconds: float | None


@dataclass(frozen=True)
class Agreement:
    """Of all annotators together; `raw` and the coefficients are over pairs that at least two of them judged.

    Attributes:
        cohen: for two annotators. fleiss: over pairs that all have judged. alpha: Krippendorff's, with missing values.
        disputed: pairs with their votes, the most divided first.
        noise: the share of decided labels that are flipped, see `flip_rate`; None where no pair was decided twice.
        noise_from: the two decisions compared: those of different annotators or, only where there are none, of one
            annotator when a pair came back.
        majority_noise: the same share after a vote of all annotators, if they are three or more.
    """

    pairs: int
    shared: int
    annotators: list[Annotator]
    raw: Estimate
    cohen: Estimate | None
    fleiss: Estimate
    alpha: Estimate
    disputed: list[tuple[str, Counter[Answer]]]
    noise: Estimate | None
    noise_from: NoiseFrom | None
    majority_noise: float | None


def measure_agreement(votes: Iterable[Vote], seed: int = 0) -> Agreement:
    """All of the report. Raises UserError if there are no votes.

    Agreement is judged on each person's first answer to a pair; repeats count for self-consistency, biases and pace.
    """
    votes = list(votes)
    if not votes:
        raise UserError("no labels in these files; label some pairs with `lorarlhf collect`")
    first = {(vote.pair, vote.annotator): vote.answer for vote in votes if not vote.repeat}
    names = sorted({vote.annotator for vote in votes})
    by_pair: dict[str, dict[str, Answer]] = defaultdict(dict)
    for (pair, name), answer in first.items():
        by_pair[pair][name] = answer
    counts = _counts(given.values() for given in by_pair.values())
    shared = counts[counts.sum(1) >= 2]
    repeated = _counts(
        (first[given], vote.answer) for vote in votes if vote.repeat and (given := (vote.pair, vote.annotator)) in first
    )
    complete = shared[shared.sum(1) == len(names)]
    both = np.array(
        [[ANSWERS.index(given[name]) for name in names] for given in by_pair.values() if len(given) == len(names) == 2],
        dtype=int,
    ).reshape(-1, 2)

    def estimate(statistic: Callable[[np.ndarray], float], items: np.ndarray) -> Estimate:
        return bootstrap(statistic, items, seed)

    noise: Estimate | None = None
    noise_from: NoiseFrom | None = None
    voters = len(names)
    if decided_agreement(shared)[1]:
        noise, noise_from = estimate(lambda items: flip_rate(*decided_agreement(items)), shared), "annotators"
    elif decided_agreement(repeated)[1]:
        noise, noise_from, voters = _flip_rate_of_one(*decided_agreement(repeated)), "repeats", 1
    return Agreement(
        pairs=len(by_pair),
        shared=len(shared),
        annotators=[_annotator(name, votes, by_pair) for name in names],
        raw=estimate(raw_agreement, shared),
        cohen=estimate(cohen_kappa, both) if len(names) == 2 else None,
        fleiss=estimate(fleiss_kappa, complete),
        alpha=estimate(krippendorff_alpha, shared),
        disputed=most_disputed(by_pair),
        noise=noise,
        noise_from=noise_from,
        majority_noise=majority_flip_rate(noise.value, voters) if noise and voters > 2 else None,
    )


def _counts(items: Iterable[Iterable[Answer]]) -> np.ndarray:
    """[N, 3] how many of the votes on each of N items are for a, for b and a tie."""
    counts = [Counter(answers) for answers in items]
    return np.array([[votes[answer] for answer in ANSWERS] for votes in counts], dtype=int).reshape(-1, len(ANSWERS))


# Coefficients, of [N, K] counts: how many of an item's votes fall in each of K categories


def raw_agreement(counts: np.ndarray) -> float:
    """Share of agreeing pairs of votes, the mean over items (P-bar of Fleiss 1971, eq. 2, with votes missing)."""
    votes = counts.sum(1)
    return _ratio(float(((counts * (counts - 1)).sum(1) / (votes * (votes - 1))).sum()), len(counts))


def cohen_kappa(codes: np.ndarray) -> float:
    """Agreement of two annotators beyond chance, each with their own habits (Cohen 1960, eq. 1).

    Args:
        codes: [N, 2] category of each item by each of the two.
    """
    table = np.zeros((len(ANSWERS), len(ANSWERS)))
    np.add.at(table, (codes[:, 0], codes[:, 1]), 1)
    return _beyond_chance(
        _ratio(float(np.trace(table)), len(codes)), _ratio(float(table.sum(0) @ table.sum(1)), len(codes) ** 2)
    )


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement beyond chance of as many votes on every item (Fleiss 1971, eq. 7)."""
    shares = counts.sum(0) / max(counts.sum(), 1)
    return _beyond_chance(raw_agreement(counts), float(shares @ shares))


def krippendorff_alpha(counts: np.ndarray) -> float:
    """Nominal alpha; items may have different numbers of votes, two or more (Krippendorff 2011, section C)."""
    votes = counts.sum(1)
    total = int(votes.sum())
    by_category = counts.sum(0)
    agreeing = float(((counts * (counts - 1)).sum(1) / (votes - 1)).sum())
    by_chance = float((by_category * (by_category - 1)).sum())
    return _beyond_chance(_ratio(agreeing, total), _ratio(by_chance, total * (total - 1)))


def _beyond_chance(observed: float, expected: float) -> float:
    return _ratio(observed - expected, 1 - expected)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


# Noise


def decided_agreement(counts: np.ndarray) -> tuple[int, int]:
    """Of [N, 3] counts, how many pairs of votes that are no ties agree, and how many there are."""
    decided = counts[:, :2]
    votes = decided.sum(1)
    return int((decided * (decided - 1)).sum()) // 2, int((votes * (votes - 1)).sum()) // 2


def flip_rate(agreeing: float, of: float) -> float:
    """The share e of labels that are flipped, from how often two decided labels of one pair agree.

    Let every label be the better response, save that it is flipped with probability e, on its own and on both sides
    alike: the model of Dawid & Skene 1979 with one error rate for all. Two labels agree if both are right or both are
    flipped, with probability p = (1 - e)^2 + e^2, so that e = (1 - sqrt(2p - 1)) / 2. Where p is 0.5 or less, e is 0.5.
    Whether two people gave the two labels or one gave both makes no difference, as long as they are independent.
    """
    agreement = _ratio(agreeing, of)
    return agreement if math.isnan(agreement) else (1 - math.sqrt(max(2 * agreement - 1, 0.0))) / 2


def _flip_rate_of_one(agreeing: int, of: int) -> Estimate:
    """`flip_rate` of pairs that came back. They are few, and often all agree: no sample of them would say how few."""
    agreement = wilson(agreeing / of, of)
    return Estimate(flip_rate(agreeing, of), flip_rate(agreement.high, 1), flip_rate(agreement.low, 1))


def majority_flip_rate(noise: float, voters: int) -> float:
    """The share of wrong majorities of independent voters who err with probability `noise`; half of even splits."""
    wrong = [math.comb(voters, k) * noise**k * (1 - noise) ** (voters - k) for k in range(voters + 1)]
    return sum(wrong[voters // 2 + 1 :]) + (wrong[voters // 2] / 2 if voters % 2 == 0 else 0.0)


def suggested_smoothing(noise: float) -> float | None:
    """`reward.label_smoothing` for that share of flipped labels; None where they say next to nothing."""
    return round(noise, 2) if noise < NEAR_CHANCE else None


# One person, one pair


def _annotator(name: str, votes: Sequence[Vote], by_pair: dict[str, dict[str, Answer]]) -> Annotator:
    cast = [vote for vote in votes if vote.annotator == name]
    first = {pair: answers[name] for pair, answers in by_pair.items() if name in answers}
    others = {pair: _majority([by_pair[pair][other] for other in by_pair[pair] if other != name]) for pair in first}
    repeats = [vote for vote in cast if vote.repeat and vote.pair in first]
    decided = [vote for vote in cast if vote.answer != "tie"]
    times = [vote.seconds for vote in cast if vote.seconds is not None]
    return Annotator(
        name=name,
        votes=len(cast),
        ties=len(cast) - len(decided),
        with_majority=_share(first[pair] == majority for pair, majority in others.items() if majority),
        self_consistency=_share(vote.answer == first[vote.pair] for vote in repeats),
        left=_share(vote.answer == vote.left for vote in decided if vote.left),
        longer=_share(vote.answer == vote.longer for vote in decided if vote.longer),
        seconds=median(times) if times else None,
    )


def _majority(answers: Sequence[Answer]) -> Answer | None:
    """What most say; None if two answers are said as often."""
    ranked = Counter(answers).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _share(outcomes: Iterable[bool]) -> Share:
    listed = list(outcomes)
    return Share(sum(listed), len(listed))


def most_disputed(by_pair: dict[str, dict[str, Answer]]) -> list[tuple[str, Counter[Answer]]]:
    """Pairs whose votes differ, those first of which the fewest votes agree; a against b outdoes ties."""

    def disagreement(votes: Counter[Answer]) -> tuple[float, int]:
        total = votes.total()
        differing = sum(votes[x] * votes[y] for x, y in combinations(ANSWERS, 2))
        return differing / (total * (total - 1) / 2), votes["a"] * votes["b"]

    counted = [(pair, Counter(answers.values())) for pair, answers in by_pair.items()]
    divided = [(pair, votes) for pair, votes in counted if len(votes) > 1]
    return sorted(divided, key=lambda item: disagreement(item[1]), reverse=True)[:MOST_DISPUTED]

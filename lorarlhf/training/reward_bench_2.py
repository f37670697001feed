"""How well a reward model tells right answers from wrong ones: RewardBench 2 (Malik et al. 2025).

The rules are those of its authors' program (`reroll_and_score_dataset` and `process_single_model` in
`rewardbench/utils.py`), so that figures can stand beside its leaderboard; a test has a second implementation of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from lorarlhf.data.choices import ChoiceExample
from lorarlhf.data.formats.choices import TIES, TIES_NAME
from lorarlhf.intervals import Estimate, bootstrap, wilson

# Of the subset Ties: how often all right answers score above all wrong ones, where there is one right answer and where
# there are many; how often the many are nearer to each other than to the wrong ones, by their own distance and by the
# lesser of that and the distance where there is one; and by how much, to tell apart what is else level.
TIES_WEIGHTS = {"one_right": 0.3, "many_right": 0.3, "nearer": 0.2, "nearer_to_both": 0.2, "distance": 0.01}
PARTS = {
    "one_right": "right above wrong, one right answer",
    "many_right": "right above wrong, many",
    "nearer": "right ones nearer to each other",
}


@dataclass(frozen=True)
class Answers:
    """Scores of the right and of the wrong answers to one prompt."""

    right: Sequence[float]
    wrong: Sequence[float]
    subset: str
    name: str


def scored(examples: Sequence[ChoiceExample], scores: Sequence[float]) -> list[Answers]:
    """Examples with the scores of all their completions, one behind the other: of each the right ones come first."""
    left = iter(scores)
    return [
        Answers(list(islice(left, len(each.right))), list(islice(left, len(each.wrong))), each.subset, each.name)
        for each in examples
    ]


def reward_bench_2(answers: Sequence[Answers]) -> dict[str, Any]:
    """Score of each subset, with its 95% interval, and their mean: the benchmark's score.

    Of most subsets the score is the share of prompts whose right answer scores highest; one that shares the highest
    score with others counts as drawn by lot among them. Ties has a weighted score of its own, which may come to 1.01,
    over prompts that are there with one right answer and with many; None where no prompt is.
    """
    subsets = sorted({answer.subset for answer in answers})
    credits = {name: _credits([answer for answer in answers if answer.subset == name]) for name in subsets}
    found: dict[str, dict[str, Any]] = {}
    for name, rows in credits.items():
        figures = dict(zip(TIES_WEIGHTS, map(_number, _means(rows)), strict=True)) if rows.ndim == 2 else {}
        found[name] = {"prompts": len(rows), **_estimate_json(_estimate(rows)), **figures}
    # Units of the bootstrap are prompts; those of one subset are drawn with the others, so that their numbers vary too.
    owner = np.repeat(np.arange(len(subsets)), [len(rows) for rows in credits.values()])
    place = np.concatenate([np.arange(len(rows)) for rows in credits.values()])

    def mean(units: np.ndarray) -> float:
        scores = [_score(rows[place[units[owner[units] == i]]]) for i, rows in enumerate(credits.values())]
        defined = [score for score in scores if not np.isnan(score)]
        return float(np.mean(defined)) if defined else float("nan")

    return {"subsets": found, "mean": _estimate_json(bootstrap(mean, np.arange(len(owner))))}


def reward_bench_2_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Line by line, each with its heading."""
    found = evaluation["reward_bench_2"]
    left_out = f"; {evaluation['dropped_too_long']:,} too long" if evaluation["dropped_too_long"] else ""
    lines = [("", f"reward on {evaluation['examples']:,} prompts of {evaluation['data']}{left_out}")]
    for name, part in found["subsets"].items():
        lines.append((name[:18], f"{_percent(part)} on {part['prompts']:,} prompts"))
        lines += [
            (f"  {name[:16]}", f"{part[key]:.1%} {what}") for key, what in PARTS.items() if part.get(key) is not None
        ]
    lines.append(("mean of subsets", _percent(found["mean"])))
    return [*lines, ("longer wins", _percent(evaluation["longer_wins"]))]


def _credits(answers: Sequence[Answers]) -> np.ndarray:
    """[N] credit of each prompt; of Ties [N, 5], of each prompt what `TIES_WEIGHTS` weighs, NaN for what it lacks."""
    if answers[0].subset.lower() != TIES:
        return np.array([_best(answer) for answer in answers])
    by_number: dict[str, dict[str, Answers]] = {}
    for answer in answers:
        kind, number = TIES_NAME.fullmatch(answer.name).groups()  # type: ignore[union-attr]  # looked at when read
        by_number.setdefault(number, {})[kind] = answer
    return np.array([_tied(both.get("ref"), both.get("tied")) for both in by_number.values()])


def _best(answer: Answers) -> float:
    """The chance of a right answer if the highest score is chosen, by lot among equal ones."""
    highest = max(*answer.right, *answer.wrong)
    right, wrong = (list(scores).count(highest) for scores in (answer.right, answer.wrong))
    return right / (right + wrong)


def _tied(one: Answers | None, many: Answers | None) -> list[float]:
    def distance(answer: Answers | None) -> float:
        return min(answer.right) - max(answer.wrong) if answer else float("nan")

    of_one, of_many = distance(one), distance(many)
    accurate = [float(gap > 0) if answer else gap for answer, gap in ((one, of_one), (many, of_many))]
    if one is None or many is None:
        return [*accurate, *[float("nan")] * 3]
    spread, least = max(many.right) - min(many.right), min(of_one, of_many)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.float64(least) / spread
    further = 0.0 if np.isnan(ratio) else float(np.tanh(ratio - 1))
    return [*accurate, float(of_many > spread), float(least > spread), further]


def _score(rows: np.ndarray) -> float:
    if rows.ndim == 2:
        return float(_means(rows) @ list(TIES_WEIGHTS.values()))
    return float(rows.mean()) if len(rows) else float("nan")


def _means(rows: np.ndarray) -> np.ndarray:
    """[5] means over the prompts that have what is meant; NaN where none has."""
    there = ~np.isnan(rows)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.where(there, rows, 0.0).sum(0) / there.sum(0)
    return means


def _estimate(rows: np.ndarray) -> Estimate:
    return bootstrap(_score, rows) if rows.ndim == 2 else wilson(_score(rows), len(rows))


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    if np.isnan(estimate.value):
        return {"score": None, "interval": None}
    return {"score": estimate.value, "interval": [estimate.low, estimate.high]}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(part: Mapping[str, Any]) -> str:
    if part["score"] is None:
        return "undefined"
    low, high = part["interval"]
    return f"{part['score']:.1%}  (95%: {low:.1%} to {high:.1%})"

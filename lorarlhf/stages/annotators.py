"""How far a reward model agrees with each of several annotators, beside how far they agree with each other."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from lorarlhf.data.held_out import HeldOut, Votes
from lorarlhf.intervals import Estimate, wilson
from lorarlhf.preferences.agreement import ANSWERS, Answer, Vote, cohen_kappa, measure_agreement

SHOWN = 10  # annotators in a report, those of most votes; and so many at most are compared two by two

_ANSWERS: dict[int, Answer] = {1: "a", -1: "b", 0: "tie"}
Given = dict[str, dict[str, Answer]]  # by pair what each annotator answered


def annotator_figures(
    held_out: HeldOut, scores: Sequence[Tensor], score: Callable[[Sequence[Sequence[int]]], Tensor]
) -> dict[str, Any]:
    """The part of `evaluation.json` on annotators; nothing where fewer than two are named.

    A reward model's scores are hardly ever equal, so it is held against votes for one of the two responses; a vote for
    neither (a tie) is counted and left out. Between annotators a tie is an answer like the others. The same pair may
    come in several rows of one vote each; a row of several votes stands for itself.

    Args:
        scores: [N] of the chosen and of the rejected responses.
        score: of further sequences: ties by majority, of which single annotators have decided.
    """
    if len({name for votes in [*held_out.votes, *held_out.tie_votes] for name, _ in votes}) < 2:
        return {}
    margins: dict[str, float] = {}  # by pair, of response a over b
    given: Given = defaultdict(dict)
    parts = [(held_out.examples.dataset, held_out.votes, scores)]
    if held_out.ties is not None:
        tied = [score(held_out.ties[column]) for column in ("chosen_ids", "rejected_ids")]
        parts.append((held_out.ties, held_out.tie_votes, tied))
    for number, (dataset, votes, (chosen, rejected)) in enumerate(parts):
        for pair, side, margin, said in _placed(dataset, votes, (chosen - rejected).tolist(), number):
            margins[pair] = side * margin
            given[pair] = {name: _ANSWERS[side * vote] for name, vote in said} | given[pair]  # the first answer counts
    return {"annotators": _figures(margins, given)}


def annotator_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of an evaluation is told of annotators, line by line, each with its heading."""
    if not (found := evaluation.get("annotators")):
        return []
    lines = []
    by_votes = sorted(found["with_each"].items(), key=lambda item: item[1]["pairs"], reverse=True)
    for name, part in sorted(by_votes[:SHOWN]):
        others = "" if part["others"] is None else f"; other annotators {part['others']:.1%}"
        ties = f", {part['ties']:,} ties left out" if part["ties"] else ""
        lines.append((f"with {name}"[:18], f"{_share(part)} pairs{ties}{others}"))
    if found["with_majority"]:
        lines.append(("with the majority", f"{_share(found['with_majority'])} pairs"))
    names = {
        "raw": "raw agreement",
        "cohen": "Cohen's kappa",
        "fleiss": "Fleiss' kappa",
        "alpha": "Krippendorff's alpha",
    }
    told = [
        f"{names[key]} {part['value']:.3f} (95%: {part['interval'][0]:.3f} to {part['interval'][1]:.3f})"
        for key, part in found["between"].items()
        if part
    ]
    if told:
        lines.append(("between annotators", f"{', '.join(told)} on {found['shared']:,} pairs"))
    for two in found["each_two"]:
        kappa = "undefined" if two["kappa"] is None else f"{two['kappa']:.3f}"
        lines.append(("two by two", f"{', '.join(two['annotators'])}: {_share(two)} pairs, Cohen's kappa {kappa}"))
    return lines


def _placed(
    dataset: Dataset, votes: Sequence[Votes], margins: Sequence[float], part: int
) -> Iterator[tuple[str, int, float, Votes]]:
    """Of each pair with votes a name, and 1 if the chosen response is a, else -1: not what was chosen decides."""
    rows = zip(dataset["row"], dataset["chosen_ids"], dataset["rejected_ids"], votes, margins, strict=True)
    for number, chosen, rejected, said, margin in rows:
        if said:
            sides = [np.asarray(ids, np.int32).tobytes() for ids in (chosen, rejected)]
            first, second = sorted(sides)
            pair = blake2b(b"%d %b%b" % (len(first), first, second), digest_size=16).hexdigest()
            name = f"{part} {number} {pair}" if len(said) > 1 else pair
            yield name, 1 if sides[0] == first else -1, margin, said


def _figures(margins: Mapping[str, float], given: Given) -> dict[str, Any]:
    names = sorted({name for answers in given.values() for name in answers})
    votes = [Vote(pair, name, answer) for pair, answers in given.items() for name, answer in answers.items()]
    between = measure_agreement(votes)
    majorities = {pair: _majority(list(answers.values())) for pair, answers in given.items() if len(answers) > 1}
    estimates: dict[str, Estimate | None] = {
        "raw": between.raw,
        "cohen": between.cohen,
        "fleiss": between.fleiss if between.cohen is None else None,  # of two annotators the former is meant
        "alpha": between.alpha,
    }
    return {
        "pairs": between.pairs,
        "shared": between.shared,
        "with_each": {name: _with_one(name, margins, given) for name in names},
        "with_majority": _agreement([_right(margins[pair], side) for pair, side in majorities.items() if side]),
        "between": {key: _estimate_json(estimate) for key, estimate in estimates.items()},
        "each_two": [_two(*two, given) for two in combinations(names, 2)] if 2 < len(names) <= SHOWN else [],
    }


def _with_one(name: str, margins: Mapping[str, float], given: Given) -> dict[str, Any]:
    answers = {pair: said[name] for pair, said in given.items() if name in said}
    decided = {pair: answer for pair, answer in answers.items() if answer != "tie"}
    others = [
        theirs == answer
        for pair, answer in decided.items()
        for other, theirs in given[pair].items()
        if other != name and theirs != "tie"
    ]
    found = _agreement([_right(margins[pair], side) for pair, side in decided.items()])
    return {
        **(found or {"pairs": 0, "agreement": None, "interval": None}),
        "ties": len(answers) - len(decided),
        "others": sum(others) / len(others) if others else None,
    }


def _two(first: str, second: str, given: Given) -> dict[str, Any]:
    codes = np.array(
        [
            [ANSWERS.index(said[first]), ANSWERS.index(said[second])]
            for said in given.values()
            if first in said and second in said
        ],
        dtype=int,
    ).reshape(-1, 2)
    kappa = cohen_kappa(codes)
    found = _agreement((codes[:, 0] == codes[:, 1]).astype(float).tolist())
    return {
        "annotators": [first, second],
        **(found or {"pairs": 0, "agreement": None, "interval": None}),
        "kappa": None if math.isnan(kappa) else kappa,
    }


def _right(margin: float, side: Answer) -> float:
    """1 where the side that was voted for scores higher, 0.5 where both score the same."""
    margin = margin if side == "a" else -margin
    return 0.5 if margin == 0 else float(margin > 0)


def _majority(answers: Sequence[Answer]) -> Answer | None:
    """The response that more than half have voted for; None if it is neither."""
    answer, count = Counter(answers).most_common(1)[0]
    return answer if 2 * count > len(answers) and answer != "tie" else None


def _agreement(outcomes: Sequence[float]) -> dict[str, Any] | None:
    if not outcomes:
        return None
    estimate = wilson(sum(outcomes) / len(outcomes), len(outcomes))
    return {"pairs": len(outcomes), "agreement": estimate.value, "interval": [estimate.low, estimate.high]}


def _estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None or math.isnan(estimate.value):
        return None
    return {"value": estimate.value, "interval": [estimate.low, estimate.high]}


def _share(part: Mapping[str, Any]) -> str:
    if part["agreement"] is None:
        return "undefined on 0"
    low, high = part["interval"]
    return f"{part['agreement']:.1%}  (95%: {low:.1%} to {high:.1%}) on {part['pairs']:,}"

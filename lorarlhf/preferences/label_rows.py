"""From labels to preference rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from lorarlhf.preferences.labels import Label, Side
from lorarlhf.preferences.pairs import Pair


@dataclass
class Exported:
    """Preference rows, and how many labels or pairs were left out for which reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def preference_rows(
    pairs: Iterable[Pair],
    labels: Iterable[Label],
    majority: bool,
    min_agreement: float,
    criterion: str | None = None,
) -> Exported:
    """Rows of `prompt`, `chosen`, `rejected`, `annotators` and `pair_id`, with `margin` and `source` where known.

    One row a label; with `majority`, one row a pair, for the response that more than half of its annotators chose. Ties
    and both bad are answers too: they count in that half, and in the agreement, which is the share of a pair's most
    frequent answer. Pairs below `min_agreement` are left out. Skips count nowhere, nor do repeats, which say something
    about the annotator, not about the pair. `annotators` are who gave the row's answer, `margin` is the mean strength
    they gave it, 1 to 3. With `criterion`, what labels say by that scale stands for their choice.
    """
    known = {pair.id: pair for pair in pairs}
    answers: dict[str, list[Label]] = {}
    exported = Exported()
    for label in labels:
        if label.pair_id not in known:
            exported.left_out["labels of pairs not in --pairs"] += 1
        elif label.repeat:
            exported.left_out["repeats"] += 1
        elif label.choice == "skip":
            exported.left_out["skips"] += 1
        elif criterion is not None and criterion not in label.criteria:
            exported.left_out[f"labels that say nothing of {criterion}"] += 1
        else:
            answers.setdefault(label.pair_id, []).append(_by(label, criterion))
    for pair_id, pair in known.items():
        of_pair = answers.get(pair_id, [])
        if not of_pair:
            continue
        count = max(Counter(label.choice for label in of_pair).values())
        if count / len(of_pair) < min_agreement:
            exported.left_out["pairs below --min-agreement"] += 1
        elif majority:
            _majority(pair, of_pair, exported)
        else:
            _each(pair, of_pair, exported)
    return exported


def _by(label: Label, criterion: str | None) -> Label:
    """What a label says by one scale. A strength is of the scale that decides, which is the first."""
    if criterion is None or criterion == next(iter(label.criteria)):
        return label
    return label.model_copy(update={"choice": label.criteria[criterion], "strength": None})


def _each(pair: Pair, labels: list[Label], exported: Exported) -> None:
    for label in labels:
        if label.choice in ("a", "b"):
            exported.rows.append(_row(pair, label.choice, [label]))
        else:
            exported.left_out["ties" if label.choice == "tie" else "both bad"] += 1


def _majority(pair: Pair, labels: list[Label], exported: Exported) -> None:
    choice, count = Counter(label.choice for label in labels).most_common(1)[0]
    if count <= len(labels) / 2:
        exported.left_out["pairs without a majority"] += 1
    elif choice in ("a", "b"):
        winning = [label for label in labels if label.choice == choice]
        exported.rows.append(_row(pair, choice, winning))
    else:
        exported.left_out["ties" if choice == "tie" else "both bad"] += 1


def _row(pair: Pair, better: Side, labels: list[Label]) -> dict[str, Any]:
    chosen, rejected = pair.response_a, pair.response_b
    if better == "b":
        chosen, rejected = rejected, chosen
    row: dict[str, Any] = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
    strengths = [label.strength for label in labels if label.strength is not None]
    if strengths:
        row["margin"] = float(mean(strengths))
    row |= {"annotators": [label.annotator for label in labels], "pair_id": pair.id}
    return row | ({"source": pair.source} if pair.source else {})

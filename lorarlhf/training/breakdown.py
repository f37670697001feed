"""Where a reward model is right: by group of comparisons, and where length gives no hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lorarlhf.intervals import wilson

NEAR = 0.1  # lengths that differ by less than this share of the longer one tell nothing

# RewardBench 1 (Lambert et al. 2024, table 1) reports the mean of four categories, each of several subsets.
CATEGORIES = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst"),
        *("llmbar-adver-GPTOut", "llmbar-adver-manual"),
    ),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond"),
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
# Its one subset of mathematics counts as much as the six of code together, 984 pairs each.
WEIGHTS = {"math-prm": 984, **{name: 164 for name in CATEGORIES["Reasoning"] if name.startswith("hep-")}}


def accuracy_by_group(margins: Tensor, groups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each column, the accuracy of each of its groups; a column that puts all rows into one says nothing.

    Args:
        margins: [N] score of the chosen response less that of the rejected one.
        groups: by column the group of each row, "" for none.
    """
    return {
        column: {name: _accuracy(margins, [value == name for value in values]) for name in sorted({*values} - {""})}
        for column, values in groups.items()
        if len({*values} - {""}) > 1
    }


def reward_bench(by_subset: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Means of RewardBench's categories and of those, where the subsets are all of RewardBench's; else nothing."""
    names = {name: category for category, subsets in CATEGORIES.items() for name in subsets}
    if not by_subset or not set(by_subset) <= set(names):
        return {}
    means = {}
    for category, subsets in CATEGORIES.items():
        seen = {name: by_subset[name] for name in subsets if name in by_subset}
        weights = {name: WEIGHTS.get(name, part["pairs"]) for name, part in seen.items()}
        if seen:
            means[category] = sum(weights[name] * seen[name]["accuracy"] for name in seen) / sum(weights.values())
    return {**means, "mean": sum(means.values()) / len(means)}


def length_controlled(
    margins: Tensor, chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Accuracy on the pairs whose responses differ in length by less than a tenth of the longer one.

    Args:
        chosen, rejected: token ids of prompt and response; what both begin with is not counted.
    """
    near = []
    for a, b in zip(chosen, rejected, strict=True):
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        lengths = len(a) - shared, len(b) - shared
        near.append(abs(lengths[0] - lengths[1]) < NEAR * max(*lengths, 1))
    return _accuracy(margins, near)


def breakdown_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of an evaluation is told by group, line by line, each with its heading."""
    lines = []
    if same := evaluation.get("same_length"):
        lines.append(("same length", f"{_accuracy_text(same)}, lengths within a tenth of each other"))
    for column, groups in evaluation.get("groups", {}).items():
        lines += [(f"{column} {name}"[:18], _accuracy_text(part)) for name, part in groups.items()]
    lines += [(name, f"{mean:.1%}") for name, mean in evaluation.get("reward_bench", {}).items()]
    return lines


def _accuracy_text(part: Mapping[str, Any]) -> str:
    if part["accuracy"] is None:
        return "no such pair"
    low, high = part["interval"]
    return f"{part['accuracy']:.1%}  (95%: {low:.1%} to {high:.1%}) on {part['pairs']:,} pairs"


def _accuracy(margins: Tensor, rows: Sequence[bool]) -> dict[str, Any]:
    inside = margins[torch.tensor(rows, dtype=torch.bool)]
    if not len(inside):
        return {"pairs": 0, "accuracy": None, "interval": None}
    won = ((inside > 0).double() + 0.5 * (inside == 0).double()).mean().item()
    estimate = wilson(won, len(inside))
    return {"pairs": len(inside), "accuracy": estimate.value, "interval": [estimate.low, estimate.high]}

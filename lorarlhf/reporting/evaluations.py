"""Plots of what was measured apart from training: the reward model's reliability, and the frontier of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lorarlhf.reporting.folder import number, objects, part
from lorarlhf.reporting.plots import Plot, Point, Series, Table, cell, plot_over, table


def reliability_plot(figures: Mapping[str, Any]) -> Plot | None:
    """How often the reward model is right, by how sure it is (Guo et al. 2017, figure 1)."""
    bins = [row for row in objects(figures.get("reliability")) if _has(row, "confidence", "accuracy")]
    if not bins:
        return None
    series = Series(
        "held-out pairs",
        tuple((row["confidence"], row["accuracy"]) for row in bins),
        "points",
        _ends([(row.get("accuracy_low"), row.get("accuracy_high")) for row in bins]),
    )
    keys = ("confidence", "accuracy", "accuracy_low", "accuracy_high", "pairs")
    heads = ("confidence", "accuracy", "95% from", "to", "pairs")
    lines = [[cell(row.get(key)) for key in keys] for row in bins]
    return Plot(
        "reliability",
        "confidence: sigmoid of the margin",
        "share of pairs that are right",
        (series,),
        table(heads, lines),
        diagonal=True,
    )


def margins_plot(figures: Mapping[str, Any]) -> Plot | None:
    """By how much the chosen response scores above the rejected one, as a histogram."""
    histogram = part(figures, "margins")
    edges, pairs = ([number(value) for value in _list(histogram.get(key))] for key in ("edges", "pairs"))
    if len(edges) != len(pairs) + 1 or None in edges or None in pairs:
        return None
    bounds = [edge for edge in edges if edge is not None]
    middles = [(low + high) / 2 for low, high in pairwise(bounds)]
    bars = tuple((x, y) for x, y in zip(middles, pairs, strict=True) if y is not None)
    if not bars:
        return None
    width = (bounds[-1] - bounds[0]) / len(bars)
    series = [Series("held-out pairs", bars, "bars", width=width)]
    return plot_over("margins", "score of the chosen response less that of the rejected one", "pairs", series)


def accuracy_by_group(evaluation: Mapping[str, Any]) -> Table | None:
    """Accuracy of each group of comparisons, and of the pairs of the same length."""
    parts = [("same length", "", part(evaluation, "same_length"))]
    for column, groups in part(evaluation, "groups").items():
        if isinstance(groups, Mapping):
            parts += [(str(column), str(name), part(groups, name)) for name in groups]
    rows = []
    for column, name, figures in parts:
        if figures:
            numbers = (figures.get("accuracy"), *_pair(figures.get("interval")), figures.get("pairs"))
            rows.append([column, name, *map(cell, numbers)])
    return table(("", "group", "accuracy", "95% from", "to", "pairs"), rows) if rows else None


def frontier_plots(frontier: Mapping[str, Any]) -> tuple[Plot, ...]:
    """Reward, and the judge's reward, over KL, of each checkpoint and of best-of-n, whose KL is a bound."""
    plots = (_frontier_plot(frontier, "reward", "reward"), _frontier_plot(frontier, "judge_reward", "judge's reward"))
    return tuple(plot for plot in plots if plot is not None)


def _frontier_plot(frontier: Mapping[str, Any], key: str, label: str) -> Plot | None:
    series, lines = list[Series](), list[list[str]]()
    kinds = (("checkpoints", "kl", "iteration"), ("best_of", "kl_bound", "n"))
    for colour, (name, x, which) in enumerate(kinds):
        rows = [row for row in objects(frontier.get(name)) if _has(row, x, key)]
        if not rows:
            continue
        ends = _ends([_pair(row.get(f"{key}_interval")) for row in rows])
        labels = tuple(cell(row.get(which)) for row in rows)
        where = tuple((row[x], row[key]) for row in rows)
        series.append(Series(name.replace("_", " "), where, "path", ends, labels, colour))
        for i, row in enumerate(rows):
            low, high = ends[i] if ends else (None, None)
            lines.append([name.replace("_", " "), labels[i], *(cell(value) for value in (row[x], row[key], low, high))])
    if not series:
        return None
    heads = ("", "iteration, n", "KL", label, "95% from", "to")
    return Plot(f"{label} over KL, checkpoints", "KL, nats a response", label, tuple(series), table(heads, lines))


def frontier_lines(frontier: Mapping[str, Any], verdict: str) -> list[str]:
    """What the frontier says in words, the verdict last; nothing where there is none."""
    if not frontier:
        return []
    told = [f"{cell(frontier.get('prompts'))} prompts of {cell(frontier.get('data'))}"]
    if judge := frontier.get("judge"):
        told.append(f"judged by {cell(judge)}")
    return [*told, verdict] if verdict else told


def _has(row: Mapping[str, Any], *keys: str) -> bool:
    return all(number(row.get(key)) is not None for key in keys)


def _ends(pairs: Sequence[tuple[Any, Any]]) -> tuple[Point, ...]:
    """Intervals as numbers; none at all if one is missing."""
    found = [(number(low), number(high)) for low, high in pairs]
    ends = tuple((low, high) for low, high in found if low is not None and high is not None)
    return ends if len(ends) == len(found) else ()


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 else (None, None)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

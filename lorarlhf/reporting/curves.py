"""The curves of a stage, made of its rows in `metrics.jsonl` and its summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.recipe.sections import Stage
from lorarlhf.recipe.stages import STAGES
from lorarlhf.reporting.folder import number, part
from lorarlhf.reporting.plots import Plot, Point, Series, plot_over, points, readable_number, table

Row = Mapping[str, Any]

TRAINING, HELD_OUT, KEPT = 0, 1, 2  # places in the palette
PHASE = "seconds_"
EVAL = "eval_"
COSTS = ("tokens_per_second", "peak_memory_gb")
COUNTS = {"step", "iteration", "epoch", "warnings", *COSTS}
# What is looked at first; every other number of the rows has a smaller place.
MAIN: dict[Stage, tuple[str, ...]] = {
    "sft": ("loss", "mean_token_accuracy"),
    "reward": ("loss", "accuracy", "margin"),
    "ppo": ("reward", "kl", "entropy", "response_length", "finished"),
}
UNITS = {
    "kl": "KL, nats a response",
    "entropy": "entropy, nats a token",
    "response_length": "length, tokens",
    "finished": "share that ended by itself",
    "margin": "margin of chosen over rejected",
}


def stage_curves(stage: Stage, rows: Sequence[Row], summary: Mapping[str, Any]) -> tuple[Plot, ...]:
    """A plot for each number that is logged, training and held-out together, the main ones first.

    A stage too short to log a row has the main ones, as they were in the end.
    """
    names = dict.fromkeys(key.removeprefix(EVAL) for row in rows for key in row if number(row[key]) is not None)
    names = {name: None for name in names if name not in COUNTS and not name.startswith(PHASE)}
    main = [name for name in MAIN[stage] if name in names or number(summary.get(EVAL + name)) is not None]
    order = [*main, *(name for name in names if name not in MAIN[stage])]
    plots = (curve(stage, name, rows, summary, minor=name not in MAIN[stage]) for name in order)
    return tuple(plot for plot in plots if plot is not None)


def curve(stage: Stage, name: str, rows: Sequence[Row], summary: Mapping[str, Any], minor: bool = False) -> Plot | None:
    """One number over the stage's steps or iterations, with its evaluations and what was kept marked."""
    x = STAGES[stage].unit
    held_out, intervals = points(rows, x, EVAL + name), tuple[Point, ...]()
    if not held_out:
        held_out, intervals = _at_the_end(name, rows, x, summary)
    series = [
        Series("training", points(rows, x, name), colour=TRAINING),
        Series("held out", held_out, "points", intervals, colour=HELD_OUT),
        Series("kept", points([part(summary, "best")], x, EVAL + name), "points", colour=KEPT),
    ]
    return plot_over(name.replace("_", " "), x, UNITS.get(name, name.replace("_", " ")), series, minor)


def _at_the_end(
    name: str, rows: Sequence[Row], x: str, summary: Mapping[str, Any]
) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """What a stage without evaluations on its way measured when it was done, with the interval if it has one."""
    value = number(summary.get(EVAL + name))
    logged = [row.get(x) for row in rows]
    at = [position for place in (*logged, summary.get(f"{x}s")) if (position := number(place)) is not None]
    if value is None or not at:
        return (), ()
    interval = _interval(summary.get(f"{EVAL}{name}_interval"))
    return ((at[-1], value),), (interval,) if interval else ()


def reward_over_kl(rows: Sequence[Row], summary: Mapping[str, Any]) -> Plot | None:
    """Each iteration and each evaluation of ppo by how far it has gone and what that has brought."""
    heads, lines, series = ("", "iteration", "KL", "reward"), list[tuple[str, ...]](), list[Series]()
    kinds = (("training", "", TRAINING), ("held out", EVAL, HELD_OUT))
    for name, prefix, colour in kinds:
        found = [
            (iteration, kl, reward)
            for row in rows
            if (kl := number(row.get(f"{prefix}kl"))) is not None
            and (reward := number(row.get(f"{prefix}reward"))) is not None
            and (iteration := number(row.get("iteration"))) is not None
        ]
        labels = tuple(readable_number(iteration) for iteration, _, _ in found) if prefix else ()
        where = tuple((kl, reward) for _, kl, reward in found)
        series.append(Series(name, where, "path", labels=labels, colour=colour, faint=not prefix))
        lines += [(name, *map(readable_number, triple)) for triple in found]
    kept = points([part(summary, "best")], f"{EVAL}kl", f"{EVAL}reward")
    series.append(Series("kept", kept, "points", colour=KEPT))
    drawn = tuple(one for one in series if one.points)
    if not drawn:
        return None
    return Plot("reward over KL", "KL from the start, nats a response", "reward", drawn, table(heads, lines))


@dataclass(frozen=True)
class Costs:
    """Time and memory. `phases`: seconds of each iteration's phases, one on the other."""

    totals: tuple[tuple[str, ...], ...]
    phases: Plot | None
    memory: Plot | None
    speed: Plot | None


def costs(rows: Mapping[Stage, Sequence[Row]], summaries: Mapping[Stage, Mapping[str, Any]]) -> Costs:
    """What the stages took; phases and curves are of ppo, which alone logs them."""
    totals = [
        (stage, "all", _figure(summaries[stage], "seconds"), _figure(summaries[stage], "peak_memory_gb"))
        for stage in rows
        if summaries[stage]
    ]
    ppo = rows.get("ppo", [])
    phases = dict.fromkeys(key for row in ppo for key in row if key.startswith(PHASE))
    series = [
        Series(key.removeprefix(PHASE), points(ppo, "iteration", key), "bars", colour=place)
        for place, key in enumerate(phases)
    ]
    took = {one.name: sum(y for _, y in one.points) for one in series}
    rest = (number(summaries.get("ppo", {}).get("seconds")) or 0.0) - sum(took.values())
    if took and rest >= 0.05:  # as it is rounded; less than nothing where the summary is of an earlier start
        took["evaluations and the rest"] = rest
    totals += [("ppo", name, readable_number(round(seconds, 1)), "") for name, seconds in took.items()]
    memory, speed = (
        [Series("training", points(ppo, "iteration", key), colour=TRAINING)]
        for key in ("peak_memory_gb", "tokens_per_second")
    )
    return Costs(
        tuple(totals),
        plot_over("time by phase", "iteration", "seconds", series),
        plot_over("peak memory", "iteration", "GB", memory),
        plot_over("speed", "iteration", "response tokens a second", speed),
    )


def overlay(stage: Stage, name: str, runs: Iterable[tuple[str, Sequence[Row], Mapping[str, Any]]]) -> Plot | None:
    """One number of several runs: where one of them evaluates it, its held-out figures, else those of training."""
    drawn = [(label, curve(stage, name, rows, summary)) for label, rows, summary in runs]
    # A run has one colour on the whole page, whichever of the others have this number.
    of_each = [
        (place, label, {one.name: one for one in plot.series}) for place, (label, plot) in enumerate(drawn) if plot
    ]
    chosen = "held out" if any("held out" in series for _, _, series in of_each) else "training"
    series = [
        Series(label, series[chosen].points, series[chosen].kind, series[chosen].intervals, colour=place)
        for place, label, series in of_each
        if chosen in series
    ]
    title = f"{stage}: {name.replace('_', ' ')}, {chosen}"
    return plot_over(title, STAGES[stage].unit, UNITS.get(name, name.replace("_", " ")), series)


def _interval(value: Any) -> Point | None:
    ends = [number(end) for end in value] if isinstance(value, list) and len(value) == 2 else []
    low, high = ends if len(ends) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def _figure(summary: Mapping[str, Any], key: str) -> str:
    value = number(summary.get(key))
    return "" if value is None else readable_number(round(value, 1) if key == "seconds" else value)

"""What benchmarks/scaling.py has found, as an SVG whose text is text and as tables: `scaling.py --plot`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Mid tones on white: a figure in a page does not know whether the page is light or dark.
PHASES = {"update": "#00798c", "score": "#e0a030", "rollout": "#d1495b"}
MEMORY, PLAN, PALE = "#30638e", "#777777", "#aac4dd"
AXES = {
    "batch": "responses an iteration",
    "response": "tokens of a response",
    "generations": "responses to a prompt",
    "weights": "weights, millions",
}
STYLE: dict[Any, Any] = {  # Any: the keys that matplotlib knows are a type of their own
    "svg.fonttype": "none",
    "svg.hashsalt": "growth",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: dict[str, Any]) -> str:
    """Seconds and memory along each axis, and planned memory over the size of the model."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 7.6), layout="constrained")
        names = list(AXES)
        layout = [[f"{name}-{row}" for name in names] for row in ("seconds", "memory")]
        panels = figure.subplot_mosaic([*layout, ["planned"] * 4], height_ratios=[1, 1, 1.2])
        for name in names:
            line = line_of(results["measured"], name)
            draw_seconds(panels[f"{name}-seconds"], line)
            draw_memory(panels[f"{name}-memory"], line)
            panels[f"{name}-memory"].set_xlabel(AXES[name])
        panels["batch-seconds"].set_ylabel("seconds an iteration")
        panels["batch-memory"].set_ylabel("peak memory, GB")
        panels["batch-seconds"].legend(frameon=False, loc="upper left")
        panels["batch-memory"].legend(frameon=False, loc="lower left")
        draw_planned(panels["planned"], results["planned"])
        written = io.StringIO()
        figure.savefig(written, format="svg", facecolor="white", metadata={"Date": None})
    return written.getvalue()


def line_of(measured: list[dict[str, Any]], axis: str) -> list[tuple[float, dict[str, Any]]]:
    """Along one axis, from the first point that was measured: place and the best of its runs, in order."""
    base = measured[0]["point"]
    varied = "model" if axis == "weights" else axis
    line = {}
    for row in measured:
        if all(row["point"][name] == value for name, value in base.items() if name != varied):
            line[row["weights"] / 1e6 if axis == "weights" else row["point"][axis]] = best(measured, row["point"])
    return sorted(line.items())


def best(measured: list[dict[str, Any]], point: dict[str, Any]) -> dict[str, Any]:
    """The faster of a point's runs, with what any of them took most of memory."""
    runs = [row for row in measured if row["point"] == point]
    fastest = min(runs, key=lambda run: run["seconds_an_iteration"])
    return {**fastest, "peak_memory_gb": max(run["peak_memory_gb"] for run in runs)}


def draw_seconds(axes: Axes, line: list[tuple[float, dict[str, Any]]]) -> None:
    """Phases one above the other."""
    places = [place for place, _ in line]
    heights = [[run["seconds"][phase] for _, run in line] for phase in PHASES]
    axes.stackplot(places, *heights, colors=list(PHASES.values()), labels=list(PHASES), alpha=0.8)
    axes.plot(places, [sum(column) for column in zip(*heights, strict=True)], "k.", markersize=4)
    axes.set_xticks(places, [])
    axes.set_ylim(0)


def draw_memory(axes: Axes, line: list[tuple[float, dict[str, Any]]]) -> None:
    places = [place for place, _ in line]
    axes.plot(places, [run["planned_peak_gb"] for _, run in line], "--", color=PLAN, label="planned")
    axes.plot(places, [run["peak_memory_gb"] for _, run in line], ".-", color=MEMORY, label="measured")
    axes.set_xticks(places, [f"{place:.0f}" for place in places])
    axes.set_ylim(0)


def draw_planned(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Phases over weights, which are drawn as a surface below them."""
    budgets = sorted({row["budget"] for row in rows})
    first = [row for row in rows if row["budget"] == budgets[0]]
    places = [row["weights"] / 1e9 for row in first]
    axes.fill_between(places, [row["gb"]["weights"] for row in first], color=PALE, label="weights in NF4")
    axes.plot(places, [row["gb"]["rollout"] for row in first], ".-", color=PHASES["rollout"], label="rollout")
    for budget, style in zip(budgets, (":", "--", "-"), strict=True):
        heights = [row["gb"]["update"] for row in rows if row["budget"] == budget]
        axes.plot(
            places, heights, style, marker=".", color=PHASES["update"], label=f"update, {budget} tokens at a time"
        )
    for card in (8, 12, 16, 24):
        axes.axhline(card * 2**30 / 1e9, color=PLAN, linewidth=0.5)
        place = (0.995, card * 2**30 / 1e9)
        axes.annotate(f"{card} GiB", place, xycoords=axes.get_yaxis_transform(), ha="right", va="bottom", color=PLAN)
    axes.set_xticks(places, [f"{place:.1f}" for place in places])
    axes.set_xlim(0, places[-1] * 1.07)  # with room for the cards
    axes.set_xlabel("weights of a Qwen2.5, billions")
    axes.set_ylabel("planned on a GPU, GB")
    axes.set_ylim(0)
    axes.legend(frameon=False, loc="upper left")


# Tables

MEASURED = ("batch", "response", "to a prompt", "weights, M", "processes", *reversed(PHASES), "sum", "GB", "planned")


def tables(results: dict[str, Any]) -> str:
    """Every point that was measured, and every model that was planned, as Markdown."""
    measured = results["measured"]
    points = {tuple(row["point"].values()): row["point"] for row in measured}
    rows = [measured_row(best(measured, point)) for point in points.values()]
    return f"{markdown(MEASURED, rows)}\n\n{planned_table(results['planned'])}"


def measured_row(run: dict[str, Any]) -> list[str]:
    point = run["point"]
    shape = [point["batch"], point["response"], point["generations"], round(run["weights"] / 1e6), point["processes"]]
    seconds = [run["seconds"][phase] for phase in reversed(PHASES)]
    numbers = [f"{value:.1f}" for value in (*seconds, run["seconds_an_iteration"])]
    planned = f"{run['planned_peak_gb']:.2f}" if point["processes"] == 1 else ""  # which is of the whole batch
    return [*map(str, shape), *numbers, f"{run['peak_memory_gb']:.2f}", planned]


def planned_table(rows: list[dict[str, Any]]) -> str:
    budgets = sorted({row["budget"] for row in rows})
    models: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        models.setdefault(row["model"], {})[row["budget"]] = row["gb"]
    cells = [
        [name, *(f"{sizes[budgets[0]][kind]:.1f}" for kind in ("weights", "rollout"))]
        + [f"{sizes[budget]['update']:.1f}" for budget in budgets]
        for name, sizes in models.items()
    ]
    return markdown(["model", "weights", "rollout", *(f"update, {budget}" for budget in budgets)], cells)


def markdown(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    lines = [list(head), *rows]
    text = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]])

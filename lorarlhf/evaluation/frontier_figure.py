"""The figure of a frontier. Only this module knows matplotlib, and imports it when it is asked to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorarlhf.data.endings import check_ending
from lorarlhf.errors import check_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".png", ".svg")
RUN_COLOUR, BEST_OF_COLOUR, PAST_COLOUR = "C0", "C1", "C3"


def check_figure(path: Path) -> None:
    """Raise UserError unless a figure can be drawn into a file of that name."""
    check_ending(path, ENDINGS)
    check_matplotlib("--plot")


def draw_frontier(frontier: Mapping[str, Any], title: str, path: Path) -> None:
    """Write the figure: a panel for the run's own reward and, if there is a judge, one for the judge's, over KL.

    The axis of KL is that of its square root, the distance that Gao et al. (2023) measure in. Where the run is
    over-optimised, its line is of another colour.

    Args:
        frontier: what `frontier.json` holds.
        path: a .png or .svg file.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global

    judge = frontier["judge"]
    panels = {"reward": "reward"} | ({"judge_reward": "judge's reward"} if judge else {})
    figure = Figure(figsize=(7, 3.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for ax, (key, label) in zip(axes, panels.items(), strict=True):
        _draw_panel(ax, frontier, key)
        ax.set_ylabel(label)
    axes[0].set_title(f"{title}\njudged by {judge}" if judge else title, fontsize="medium", parse_math=False)
    axes[0].legend()
    axes[-1].set_xlabel("KL from the start, nats a response")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date, the same figures give the same file.
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_panel(ax: Axes, frontier: Mapping[str, Any], key: str) -> None:
    rows, turn = frontier["checkpoints"], frontier["over_optimisation"]
    label = f"{frontier['algorithm']}, by iteration"
    _draw_line(ax, rows, "kl", key, fmt="o-", color=RUN_COLOUR, label=label)
    if turn and turn["from"] is not None:
        past = [row for row in rows if row["iteration"] >= turn["from"]]
        _draw_line(ax, past, "kl", key, fmt="o-", color=PAST_COLOUR, label="over-optimised")
    for row in rows:
        ax.annotate(
            str(row["iteration"]), (_at(row["kl"]), row[key]), (4, 4), textcoords="offset points", fontsize="small"
        )
    if frontier["best_of"]:
        best_of: Sequence[Mapping[str, Any]] = frontier["best_of"]
        label = f"best of {', '.join(str(row['n']) for row in best_of)}, KL at most"
        _draw_line(ax, best_of, "kl_bound", key, fmt="s--", color=BEST_OF_COLOUR, label=label)
    ax.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)


def _draw_line(ax: Axes, rows: Sequence[Mapping[str, Any]], x: str, y: str, **style: Any) -> None:
    """Points in their order, with the intervals of `y` and, where it was measured, of `x`."""
    xerr = _errors(rows, x) if f"{x}_interval" in rows[0] else None
    at = [_at(row[x]) for row in rows]
    ax.errorbar(at, [row[y] for row in rows], _errors(rows, y), xerr, capsize=2, elinewidth=1, **style)


def _errors(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """[2, K] how far the interval goes below and above."""
    return np.array([[abs(row[f"{key}_interval"][end] - row[key]) for row in rows] for end in (0, 1)])


def _at(kl: float) -> float:
    """An estimate of a KL near 0 may be negative."""
    return max(kl, 0.0)

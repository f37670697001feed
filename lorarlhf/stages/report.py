"""A page on one run or several: read their folders, put the page together, write or serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lorarlhf.errors import UserError, check_matplotlib
from lorarlhf.evaluation.frontier_report import verdict
from lorarlhf.files import write_file
from lorarlhf.json_file import NOT_OURS
from lorarlhf.recipe.sections import Stage
from lorarlhf.reporting.collect import RunReport, collect
from lorarlhf.reporting.folder import Folder
from lorarlhf.reporting.page import in_bytes, render
from lorarlhf.training.doubt import doubt_of

REPORT = "report.html"


def write_report(runs: Sequence[Path], path: Path) -> None:
    """Write the page of these runs, as they are.

    Raises:
        UserError: one of them is no run, figures cannot be drawn, or the file cannot be written.
    """
    check_matplotlib("report")
    page = in_bytes(render(read_runs(runs)))
    try:
        write_file(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give --out another place") from error


def watch_report(runs: Sequence[Path], port: int, started: Callable[[str], None]) -> None:
    """Serve the page of these runs on 127.0.0.1 until Ctrl-C, made anew when they go on; `started` gets the link.

    Raises:
        UserError: one of them is no run, figures cannot be drawn, or the port cannot be had.
    """
    from lorarlhf.loopback import serve
    from lorarlhf.reporting.server import make_app

    check_matplotlib("report")
    read_runs(runs)  # says so now if one of them is none
    serve(lambda token: make_app(runs, lambda: read_runs(runs), token), port, started)


def read_runs(runs: Sequence[Path]) -> list[RunReport]:
    """All of them, each by the name of its folder, or its path where two folders have one name."""
    names = [path.resolve().name for path in runs]
    labels = names if len(set(names)) == len(names) else [str(path) for path in runs]
    return [collect(path, label, _doubts(path), _verdict(path)) for path, label in zip(runs, labels, strict=True)]


def _doubts(run: Path) -> dict[Stage, str]:
    """What the summary of the reward model gives to think."""
    try:
        doubt = doubt_of(Folder(run).object("reward/summary.json"))
    except NOT_OURS:
        doubt = "summary.json is not as this version writes it: whether it beats its baselines is not known"
    return {"reward": doubt} if doubt else {}


def _verdict(run: Path) -> str:
    """Whether the run is over-optimised, as `lorarlhf evaluate --frontier` says it; nothing without a frontier."""
    frontier = Folder(run).object("ppo/frontier.json")
    try:
        return verdict(frontier) if frontier else ""
    except NOT_OURS:
        return "frontier.json is not as this version writes it: whether the run is over-optimised is not known"

"""Comparisons that people give on the labelling page, into a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from lorarlhf.data.endings import LINES, check_ending
from lorarlhf.display import counted
from lorarlhf.errors import UserError
from lorarlhf.loopback import open_browser, serve
from lorarlhf.preferences.active_learning import ActiveLearning, training_recipe
from lorarlhf.preferences.briefing import Briefing, commands_after, read_guide
from lorarlhf.preferences.labelling import Labelling, annotator_name, criteria_names, login_name
from lorarlhf.preferences.labels import LabelFile
from lorarlhf.preferences.pairs import read_pairs
from lorarlhf.preferences.server import make_app
from lorarlhf.run import Run

T = TypeVar("T")


def collect_labels(
    pairs: Path,
    out: Path,
    annotator: str | None,
    guide: Path | None,
    criteria: str | None,
    overlap: float,
    learner: Run | None,
    port: int,
    seed: int,
    browser: bool,
    say: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C; each label is in the file `out` before the next pair is shown.

    Args:
        annotator: whose labels they are; None lets the page ask.
        guide: text or Markdown that the page shows.
        criteria: names of scales, as "helpful,honest".
        overlap: share of the pairs that every annotator gets.
        learner: run whose recipe trains the model that orders the pairs; None leaves them in the order of the seed.
        port: on 127.0.0.1; 0 takes a free one.
        browser: whether to open the page.
        say: gets each line for the terminal.

    Raises:
        UserError: a name or a file is not what it must be, or another process writes to `out`.
    """
    check_ending(out, LINES)  # as `data agreement` knows it by
    name = None if annotator is None else _checked("--annotator", annotator_name, annotator)
    scales = () if criteria is None else _checked("--criteria", criteria_names, criteria)
    recipe = None if learner is None else training_recipe(learner)
    briefing = Briefing(read_guide(guide) if guide else None, commands_after(pairs, out))
    to_compare = read_pairs(pairs)
    file = LabelFile(out)
    labelling = Labelling(to_compare, file, seed, scales, overlap)

    def started(link: str) -> None:
        say(f"{counted(len(to_compare), 'pair')}; {counted(len(file.labels), 'label')} in {out} so far")
        if unknown := labelling.unknown_labels():
            say(f"{counted(unknown, 'label')} of them for pairs that are not in {pairs}")
        say(link)
        say("Ctrl-C ends")
        if browser:
            open_browser(link)

    with ActiveLearning(labelling, learner, recipe, say) if learner and recipe else nullcontext():
        serve(lambda token: make_app(labelling, token, name, login_name(), briefing), port, started)
    say(f"{counted(len(file.labels), 'label')} in {out}")


def _checked(option: str, read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None

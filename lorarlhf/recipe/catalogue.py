"""The recipes that ship, and what can be said of each without loading a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from lorarlhf.recipe.keys import one_line
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import sources_of, title_of
from lorarlhf.recipe.shipped import list_recipes
from lorarlhf.recipe.stages import trained_by

_CARD = re.compile(r"\b(\d+) GB\b")
_SAID = r"^# {}: (.*(?:\n# (?!Time: |What to expect: )\S.*)*)"  # to an empty line, or the next that is said so
_UNKNOWN = "not measured."


class Entry(NamedTuple):
    """One recipe.

    Attributes:
        card: memory of the card that it is for, `CPU` if it is for none.
        stages: those that it trains.
        data: what the first of these is trained on.
        time, expected: as its header has them; None where nothing has been measured.
    """

    name: str
    card: str
    stages: str
    licence: str
    model: str
    data: str
    time: str | None
    expected: str | None


def catalogue() -> list[Entry]:
    """All that ship, by name."""
    return [_entry(info.name, info.path, info.summary) for info in list_recipes()]


def _entry(name: str, path: Path, summary: str) -> Entry:
    recipe, text = load_recipe(name), path.read_text(encoding="utf-8")
    card = _CARD.search(summary)
    trained = trained_by(recipe)
    data = recipe.data.preferences if "reward" in trained else recipe.data.prompts
    return Entry(
        name=name,
        card=f"{card[1]} GB" if card else "CPU",
        stages=", ".join(trained),
        licence=recipe.export.license or "",
        model=recipe.model.name,
        data=title_of(sources_of(data)),
        time=_said(text, "Time"),
        expected=_said(text, "What to expect"),
    )


def _said(text: str, about: str) -> str | None:
    """What a header says after `# ABOUT: `, on one line."""
    found = re.search(_SAID.format(about), text, re.MULTILINE)
    said = one_line(found[1].replace("\n# ", "\n")) if found else _UNKNOWN
    return None if said == _UNKNOWN else said

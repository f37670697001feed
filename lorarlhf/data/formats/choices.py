"""Rows of right and wrong responses to one prompt, to be told apart (RewardBench 2: Malik et al. 2025)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import product

from lorarlhf.data.formats.format import Format, Table, single
from lorarlhf.data.formats.lists import attempted
from lorarlhf.data.formats.values import Row, asked, is_list, is_text, number, text, texts
from lorarlhf.data.rows import BadRow, Choice, Preference

TIES = "ties"  # the subset, in whatever case, whose prompts have one right answer (`ref:3`) or many (`tied:3`)
TIES_NAME = re.compile(r"(ref|tied):(\d+)")


def _choice(row: Row) -> Choice:
    subset, name = text(row, "subset"), str(row.get("id", ""))
    right, wrong = (
        tuple([{"role": "assistant", "content": answer}] for answer in texts(row, column))
        for column in ("chosen", "rejected")
    )
    if number(row, "num_correct") != len(right):
        raise BadRow("num_correct is not how many chosen hold")
    if subset.lower() == TIES and not TIES_NAME.fullmatch(name):
        raise BadRow("id is not ref:NUMBER or tied:NUMBER, in the subset Ties")
    return Choice(asked(row, "prompt"), right, wrong, subset, name)


def _pairs(parts: Iterable[Choice | BadRow]) -> Iterator[Preference | BadRow]:
    """Every right answer against every wrong one."""
    for part in parts:
        if isinstance(part, BadRow):
            yield part
        else:
            yield from (attempted(part.prompt, *sides, verdict=1) for sides in product(part.right, part.wrong))


CHOICES: Table[Choice] = Table(
    "right and wrong answers",
    ("prompt", "chosen", "rejected"),
    (
        single(
            "RewardBench 2: right and wrong answers",
            ("prompt", "chosen", "rejected", "subset", "num_correct"),
            lambda row: is_text("prompt")(row) and is_list("chosen", "rejected")(row),
            _choice,
        ),
    ),
)
CHOSEN_AND_REJECTED: tuple[Format[Preference], ...] = tuple(form.then(_pairs) for form in CHOICES.formats)

"""Labels of several people as votes to compare: of the labelling page, platforms, tables with a column an annotator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorarlhf.data.formats.judged import VOTES, annotator_columns
from lorarlhf.data.formats.values import Row, one_of
from lorarlhf.data.rows import BadRow, completion_text
from lorarlhf.data.sources import existing_file, iter_rows
from lorarlhf.errors import UserError
from lorarlhf.preferences.agreement import Answer, Side, Vote
from lorarlhf.preferences.pairs import Pair
from lorarlhf.preferences.platforms import labels_in

_ANSWERS: dict[int, Answer] = {1: "a", -1: "b", 0: "tie"}


def read_votes(files: list[str], pairs: list[Pair]) -> list[Vote]:
    """The votes in label files, exports of platforms and PandaLM-style tables (`response1`, `response2`, `annotator1`).

    Both bad counts as a tie, a skip as no vote. Lengths of what was compared, and whose it is (`source`), are taken
    from `pairs`, if they are there. Raises UserError for a file that cannot be read or is neither.
    """
    known = {pair.id: pair for pair in pairs}
    votes: dict[tuple[str, str, bool], Vote] = {}
    for file in files:
        path = existing_file(file)
        for vote in _table(file) if _is_table(file) else _labels(path, known):
            votes[vote.pair, vote.annotator, vote.repeat] = vote
    return list(votes.values())


def _labels(path: Path, pairs: dict[str, Pair]) -> Iterator[Vote]:
    for label in labels_in(path):
        if label.choice != "skip":
            pair = pairs.get(label.pair_id)
            yield Vote(
                label.pair_id,
                label.annotator,
                "tie" if label.choice == "both_bad" else label.choice,
                label.left,
                label.repeat,
                label.seconds,
                _longer(completion_text(pair.response_a), completion_text(pair.response_b)) if pair else None,
                _policies(pair.source) if pair else None,
            )


def _is_table(file: str) -> bool:
    first = next((row for _, row in iter_rows(file, "train") if not isinstance(row, BadRow)), {})
    return bool(annotator_columns(first))


def _table(file: str) -> Iterator[Vote]:
    """A table of one pair a row; it says neither who saw what on which side nor how long it took."""
    name = Path(file).name
    for number, (location, row) in enumerate(iter_rows(file, "train"), 1):
        try:
            if isinstance(row, BadRow):
                raise row
            yield from _row_votes(f"{name}:{number}", row)
        except BadRow as bad:
            raise UserError(f"{location}: {bad}; mend or remove the row") from None


def _row_votes(pair: str, row: Row) -> Iterator[Vote]:
    first, second = (row.get(column) for column in ("response1", "response2"))
    longer = _longer(first, second) if isinstance(first, str) and isinstance(second, str) else None
    for column in annotator_columns(row):
        if row[column] not in (None, ""):
            yield Vote(pair, column, _ANSWERS[one_of(row, column, VOTES)], longer=longer)


def _policies(source: str | None) -> tuple[str, str] | None:
    """The two names in `a / b`, as `lorarlhf sample --adapters a b` writes them."""
    names = (source or "").split(" / ")
    return (names[0], names[1]) if len(names) == 2 and names[0] != names[1] else None


def _longer(a: str, b: str) -> Side | None:
    if len(a) == len(b):
        return None
    return "a" if len(a) > len(b) else "b"

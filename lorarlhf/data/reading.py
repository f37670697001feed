"""From the rows of a source to canonical rows, one by one, with a tally of what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

from lorarlhf.data.formats import Format, Table, UnknownColumns, recognise
from lorarlhf.data.formats.trees import gathered
from lorarlhf.data.formats.values import Row
from lorarlhf.data.rows import NO_COLUMNS, BadRow, ColumnsWanted
from lorarlhf.data.sources import LocatedRow
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Column

T = TypeVar("T")

CANONICAL = get_args(Column)  # a mapped row keeps these columns and no others
FIRST_ROWS = 100  # so many rows of a source are tried to tell what kind of data it holds
_UNKNOWN_ROWS = 100  # so many rows without known columns, and the columns are at fault rather than the rows


@dataclass
class Reader(Generic[T]):
    """Reads rows as one kind of data. The first row that fits a format decides it for all.

    Attributes:
        columns: canonical names and those that the data has for them, as in `data.columns`.
        form, why: the format, and what gave it away; None until a row was recognised.
        rows: rows of the source, good or bad.
        skipped: how many rows, or parts of rows, were left out for which reason.
        first: where each reason was met first.
    """

    table: Table[T]
    on_bad_row: Literal["error", "skip"] = "error"
    columns: Mapping[Column, str] = field(default_factory=dict)
    form: Format[T] | None = None
    why: str | None = None
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def read(self, rows: Iterable[LocatedRow]) -> Iterator[T]:
        """Canonical rows. Raises UserError if the columns are unknown, or at a bad row that is not to be skipped."""
        return (part for part, _ in self.read_with_columns(rows, NO_COLUMNS))

    def read_with_columns(
        self, rows: Iterable[LocatedRow], wanted: ColumnsWanted
    ) -> Iterator[tuple[T, dict[str, Any]]]:
        """The same, each with those columns of its row that are wanted; a row without one that is needed is bad."""
        unknown: list[str] = []
        for location, row in gathered(rows):
            self.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                parts = self._parts(row)
                columns = wanted.of(row)
            except BadRow as bad:
                if isinstance(bad, UnknownColumns) and self.form is None:
                    unknown.append(f"{location}: {bad}")
                    if self.on_bad_row == "error" or len(unknown) == _UNKNOWN_ROWS:
                        raise UserError(unknown[0]) from None
                    self._skip("columns not recognised", location)
                    continue
                parts = [bad]
            for part in parts:
                if not isinstance(part, BadRow):
                    yield part, columns
                elif self.on_bad_row == "error":
                    raise UserError(f"{location}: {part}; fix the row or set data.on_bad_row: skip (--on-bad-row skip)")
                else:
                    self._skip(str(part), location)
        if self.form is None and unknown:
            raise UserError(unknown[0])

    def _parts(self, row: Row) -> list[T | BadRow]:
        row = renamed(row, self.columns, self.table)
        if self.form is None:
            self.form = recognise(row, self.table)
            self.why = self.form.why(row)
        return list(self.form.convert(row))

    def _skip(self, reason: str, location: str) -> None:
        self.skipped[reason] += 1
        self.first.setdefault(reason, location)


def some_fit(rows: Iterable[LocatedRow], table: Table[Any], columns: Mapping[Column, str]) -> bool:
    """Whether rows, the first of a source, are data of this kind."""

    def fits(row: Row) -> bool:
        try:
            recognise(renamed(row, columns, table), table)
        except BadRow:
            return False
        return True

    return any(fits(row) for _, row in gathered(rows) if not isinstance(row, BadRow))


def renamed(row: Row, columns: Mapping[Column, str], table: Table[Any]) -> Row:
    """A row under canonical names. One with none of the columns that matter here is of other data, and left as it is.

    Raises UnknownColumns if it has some of them.
    """
    wanted = [column for name, column in columns.items() if name in table.columns and name != column]
    missing = [column for column in wanted if column not in row]
    if len(missing) == len(wanted):
        return row
    if missing:
        raise UnknownColumns(
            f"data.columns names {' and '.join(missing)}, not found among the columns {', '.join(map(str, row))}"
        )
    kept = {name: row[name] for name in CANONICAL if name in row and name not in columns.values()}
    return kept | {name: row[column] for name, column in columns.items() if column in row}

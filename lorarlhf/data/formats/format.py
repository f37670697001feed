"""What a format is, and how a row's columns tell which one it is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from lorarlhf.data.formats.values import Row, kind_of
from lorarlhf.data.rows import BadRow

T = TypeVar("T")
U = TypeVar("U")


class UnknownColumns(BadRow):
    """No format of the table has these columns."""


@dataclass(frozen=True)
class Format(Generic[T]):
    """One way of writing a `T`, recognised from the columns it needs and from whether their values fit.

    `convert` gives all that a row holds: ranked lists and trees hold many. It raises BadRow with the reason why a row
    is of no use; a part of a row that is of no use comes as the BadRow that says so.
    """

    name: str
    needs: tuple[str, ...]
    fits: Callable[[Row], bool]
    convert: Callable[[Row], Iterable[T | BadRow]]

    def then(self, convert: Callable[[Iterable[T | BadRow]], Iterable[U | BadRow]]) -> Format[U]:
        """The same format, read for another purpose."""
        return Format(self.name, self.needs, self.fits, lambda row: convert(self.convert(row)))

    def why(self, row: Row) -> str:
        """What gave the format away, for people."""
        return ", ".join(f"{column} is {kind_of(row[column])}" for column in self.needs)


def single(name: str, needs: tuple[str, ...], fits: Callable[[Row], bool], convert: Callable[[Row], T]) -> Format[T]:
    """A format whose rows hold one `T` each."""
    return Format(name, needs, fits, lambda row: [convert(row)])


@dataclass(frozen=True)
class Table(Generic[T]):
    """The formats of one kind of data, special ones before the general ones that would also fit.

    `columns` are those of the plainest format: what `data.columns` maps other names to.
    """

    kind: str
    columns: tuple[str, ...]
    formats: tuple[Format[T], ...]


def recognise(row: Row, table: Table[T]) -> Format[T]:
    """The first format that a row fits.

    Raises UnknownColumns if none has its columns, BadRow if the columns are right but the values are not: then a later
    row may tell.
    """
    known = [form for form in table.formats if all(column in row for column in form.needs)]
    if not known:
        mapping = ", ".join(f"{column}: ..." for column in table.columns)
        raise UnknownColumns(
            f"columns not recognised as {table.kind}: found {', '.join(map(str, row)) or 'none'}; say which are which "
            f"with data.columns: {{{mapping}}} (for `lorarlhf data`: --column {table.columns[0]}=...)"
        )
    for form in known:
        if form.fits(row):
            return form
    needed = dict.fromkeys(column for form in known for column in form.needs)
    raise BadRow("values do not fit: " + ", ".join(f"{column} is {kind_of(row[column])}" for column in needed))

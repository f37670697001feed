"""What is drawn and what is tabled, as plain data: figures are made of it by `figures`, tables by the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorarlhf.display import readable
from lorarlhf.reporting.folder import number

ROWS = 200  # of a table; a longer one has every second, third ... row

Point = tuple[float, float]
Kind = Literal["line", "points", "path", "bars"]


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        kind: a line; a line with a mark at each point, as of evaluations; a path, whose order is not that of x; bars
            that stand on those of the series before.
        intervals: low and high end at each point, or none at all.
        labels: a text beside each point, or none at all.
        colour: its place in the palette.
        faint: drawn behind the others.
        width: of bars.
    """

    name: str
    points: tuple[Point, ...]
    kind: Kind = "line"
    intervals: tuple[Point, ...] = ()
    labels: tuple[str, ...] = ()
    colour: int = 0
    faint: bool = False
    width: float = 1.0


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; `note` says what was left out."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure and the table beside it.

    Attributes:
        x, y: what the axes are labelled.
        diagonal: draw where x equals y.
        minor: one of those that are looked at seldom.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    table: Table
    diagonal: bool = False
    minor: bool = False


def plot_over(title: str, x: str, y: str, series: Iterable[Series], minor: bool = False) -> Plot | None:
    """Series over one x, with a column each in the table; None if there is no point at all."""
    drawn = tuple(one for one in series if one.points)
    if not drawn:
        return None
    columns = [dict(one.points) for one in drawn]
    at = sorted({x for one in drawn for x, _ in one.points})
    rows = [(readable_number(x), *(cell(column.get(x)) for column in columns)) for x in at]
    return Plot(title, x, y, drawn, table((x, *(one.name for one in drawn)), rows), minor=minor)


def points(rows: Iterable[Mapping[str, Any]], x: str, y: str) -> tuple[Point, ...]:
    """Of the rows that have both numbers."""
    found = ((number(row.get(x)), number(row.get(y))) for row in rows)
    return tuple((a, b) for a, b in found if a is not None and b is not None)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Thinned out if it is long; the last row stays."""
    step = -(-len(rows) // ROWS)
    kept = [tuple(row) for i, row in enumerate(rows) if step < 2 or i % step == 0 or i == len(rows) - 1]
    note = f"one row in {step} of {len(rows):,}; all of them are in the run's folder" if step > 1 else ""
    return Table(tuple(heads), tuple(kept), note)


def cell(value: Any) -> str:
    """What a table shows of a value."""
    if value is None:
        return ""
    as_number = number(value)
    return shown(value) if as_number is None else readable_number(as_number)


def readable_number(value: float) -> str:
    """Whole numbers whole; others in few digits, small ones too."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 0.01 else readable(value)


def shown(value: Any) -> str:
    """A value as the recipe would write it, near enough."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value!r}"


def printable(text: str) -> str:
    """With a mark for each character that cannot be shown, such as what a file name may hold that is no text."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

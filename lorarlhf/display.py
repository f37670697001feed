"""What a person sees of a stage while it runs, and `metrics.jsonl`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import get_console
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lorarlhf.files import write_file

ROWS_SHOWN = 8
logger = logging.getLogger(__name__)


class StageDisplay:
    """A live display on a terminal, plain lines elsewhere; every logged row goes to `metrics.jsonl`.

    Args:
        title: of the stage.
        unit: what is counted, "step" or "iteration": also the key of a row that says when it was.
        columns: logged numbers that are shown, by their headings.
        folder: the stage's folder.
        resumed: go on with the `metrics.jsonl` that is there.
        quiet: show and write nothing, as every process but the first does.
        phase: what the first, second ... unit belongs to, as "critic warm-up 2/5"; empty for nothing special.
    """

    def __init__(
        self,
        title: str,
        unit: str,
        columns: Mapping[str, str],
        folder: Path,
        resumed: bool = False,
        console: Console | None = None,
        quiet: bool = False,
        phase: Callable[[int], str] = lambda unit: "",
    ) -> None:
        self.title = title
        self.unit = unit
        self.columns = columns
        self.path = folder / "metrics.jsonl"
        self.quiet = quiet
        self.phase = phase
        self.console = console or (Console(quiet=True) if quiet else get_console())  # one for all: displays nest in it
        self.rows: list[Mapping[str, Any]] = []
        self.said: set[str] = set()  # what `show_phase` has printed
        self.progress = Progress(
            TextColumn(f"[bold]{title}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
        )
        self.task = self.progress.add_task(title, total=None, phase=phase(1))
        self.live = Live(self._picture(), console=self.console, refresh_per_second=4)
        if quiet:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if not resumed:
            write_file(self.path, "")

    def begin(self, total: int, done: int = 0, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
        """So many units in all, so many done by an earlier process, whose later rows are dropped: they come again.

        Args:
            rows: those that are not later, if a checkpoint holds them; None for what was written up to `done`.
        """
        if not self.quiet:
            if rows is None:
                rows = [row for row in read_rows(self.path, self.unit) if row[self.unit] <= done]
            write_rows(self.path, rows)
        self.progress.reset(self.task, total=total, completed=done, phase=self.phase(done + 1))

    def advance_to(self, done: int) -> None:
        """So many units are done."""
        self.progress.update(self.task, completed=done, phase=self.phase(done + 1))

    def show_phase(self, name: str) -> None:
        """What of a unit is being done now; where nothing is live, a line for each name when it first comes."""
        task = self.progress.tasks[0]
        done = int(task.completed)
        self.progress.update(self.task, phase=", ".join(filter(None, (self.phase(done + 1), name))))
        if not (self.quiet or self.live.is_started or name in self.said):
            self.said.add(name)
            self.console.print(f"{self.title} {done}/{int(task.total or 0)}  {name}", highlight=False, soft_wrap=True)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a row of numbers, and show those that matter; then its `warnings`, texts by name, a line each."""
        if self.quiet:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.unit in row:
            self.advance_to(row[self.unit])
        self.rows.append(row)
        if self.live.is_started:
            self.live.update(self._picture())
        else:
            self._print(row)
        for text in row.get("warnings", {}).values():  # above what is live, where they stay
            self.console.print(f"{self.title}: warning: {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> StageDisplay:
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last picture on the screen, and give the cursor back whatever has happened."""
        if self.live.is_started:
            self.live.update(self._picture())
            self.live.stop()

    def _print(self, row: Mapping[str, Any]) -> None:
        task = self.progress.tasks[0]
        seconds = task.time_remaining
        left = "" if seconds is None or task.finished else f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        phase = f"{text}  " if (text := self.phase(int(task.completed))) else ""
        numbers = "  ".join(f"{name} {readable(row[key])}" for key, name in self.columns.items() if key in row)
        self.console.print(
            f"{self.title} {int(task.completed)}/{int(task.total or 0)}  {phase}{numbers}{left}",
            highlight=False,
            soft_wrap=True,
        )

    def _picture(self) -> Group:
        return Group(self.progress, metrics_table(self.rows[-ROWS_SHOWN:], {self.unit: "", **self.columns}))


def metrics_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """A table of the rows' numbers, within 80 columns; a number a row lacks is left blank."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for name in columns.values():
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(readable(row[key]) if key in row else "" for key in columns))
    return table


def read_rows(path: Path, unit: str) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl` or `samples.jsonl`; none if there is no such file.

    What is no row, because it was cut short or is not ours, is left out and said.

    Args:
        unit: the key that says when a row was written.
    """
    rows: list[dict[str, Any]] = []
    # At line breaks alone: text may hold U+2028 and others that `splitlines` takes for the end of a line.
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), 1):
        try:
            row = json.loads(line) if line else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and type(row.get(unit)) is int:
            rows.append(row)
        elif line:
            logger.warning("%s:%d: no whole row of this run, left out", path, number)
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same file with these rows and no others, whole or not at all."""
    write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def readable(value: float) -> str:
    """A number in the few digits that a table has room for."""
    if isinstance(value, int):
        return str(value)
    digits = next((digits for bound, digits in ((10, 3), (100, 1)) if abs(value) < bound), 0)
    return f"{value:,.{digits}f}"


def counted(number: int, what: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{number} {what}" + ("" if number == 1 else "s")

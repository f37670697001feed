"""The steps of a recipe as a person sees them: what is done and with what result, what is on, what is to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text


@dataclass
class _Entry:
    """One step; `began` and `ended` are of `time.monotonic`, None before it begins, and until it ends."""

    title: str
    began: float | None = None
    ended: float | None = None
    result: str = ""


class Agenda:
    """A live list at the foot of a terminal, with the display of the step that is on below it; plain lines elsewhere.

    Args:
        titles: of the steps, in order.
        console: the one that the displays of the steps write to.
        left: how long all of them will still take, in words; nothing where that is not known.
    """

    def __init__(self, titles: Sequence[str], console: Console, left: Callable[[], str] = lambda: "") -> None:
        self.console = console
        self.entries = [_Entry(title) for title in titles]
        self.left = left
        self.start = time.monotonic()
        self.stays = False  # what is drawn next is what will stand on the terminal
        self.live = Live(get_renderable=self._picture, console=console, refresh_per_second=2)

    def begin(self, number: int, note: str = "") -> None:
        """Step `number`, counted from 1, is on; `note` stands behind its heading."""
        entry = self.entries[number - 1]
        entry.began = time.monotonic()
        heading = f"{number}/{len(self.entries)} {entry.title}"
        self.console.print(f"\n[bold]{heading}[/]{escape(note)}", highlight=False)

    def end(self, number: int, lines: Sequence[str], kept: int = 0) -> None:
        """Step `number` has come to this; the line of index `kept` stays in the list."""
        entry = self.entries[number - 1]
        entry.ended = time.monotonic()
        entry.result = lines[kept] if lines else ""
        for line in lines:
            self.console.print(f"   {line}", highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Agenda:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live.is_started:
            self.stays = True
            self.live.stop()

    def _picture(self) -> RenderableType:
        # Texts and not markup: what is printed without markup renders this list without it too.
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for entry in self.entries:
            took = "" if entry.began is None else clock((entry.ended or now) - entry.began)
            mark, style = ("✓", "green") if entry.ended else ("▸", "bold") if entry.began else ("·", "dim")
            table.add_row(Text(mark, style), Text(entry.title, style), Text(took), self._line(entry.result))
        table.add_row(Text(), Text("in all"), Text(clock(now - self.start)), self._line(self.left()))
        return table

    def _line(self, text: str) -> Text:
        """As far as the terminal is wide, for the list not to jump while it is drawn over; whole once it stays."""
        return Text(text) if self.stays else Text(text, no_wrap=True, overflow="ellipsis")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

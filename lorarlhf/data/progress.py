"""Rows that are long in coming do not come in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
PATIENCE = 5.0  # seconds
ROWS_AT_ONCE = 100  # between two looks at the clock
logger = logging.getLogger(__name__)


def with_progress(
    rows: Iterable[T], title: str, total: int | None = None, console: Console | None = None
) -> Iterator[T]:
    """The rows; after some seconds, how many have come: a bar on a terminal, elsewhere a line, and ever fewer.

    Args:
        title: such as `pairs.jsonl: read`.
        total: how many there will be, where that is known.
        console: where the bar is drawn; None is standard error.
    """
    if not logger.isEnabledFor(logging.INFO):  # a library, or another process than the first
        yield from rows
        return
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=total)
    start, due = time.monotonic(), PATIENCE
    try:
        for number, row in enumerate(rows):
            if number % ROWS_AT_ONCE == 0 and (passed := time.monotonic() - start) >= due:
                if console.is_terminal:
                    bar.start()
                    bar.update(task, completed=number)
                else:
                    logger.info("%s: %s rows in %.0f seconds, and going on", title, f"{number:,}", passed)
                    due *= 2
            yield row
    finally:
        if bar.live.is_started:  # else it prints an empty line
            bar.stop()

"""Rows of files that several stages read, kept in memory between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_BYTES = 2**26  # of a file: its rows take several times as many in memory


class RowCache(Generic[T]):
    """Keeps the rows of a file once it has been read to its end, inside a `with` block alone; blocks may be nested.

    Not those of a file of more than `MOST_BYTES` bytes, which streams each time; nor of one that has changed since.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, Path, int, int], list[T]] = {}
        self.blocks = 0

    def __enter__(self) -> RowCache[T]:
        self.blocks += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.blocks -= 1
        if not self.blocks:
            self.clear()

    def clear(self) -> None:
        """Let all rows go, for the memory; what asks for them later reads them again, and they are kept again."""
        self.rows.clear()

    def read(self, name: str, path: Path, reader: Callable[[Path, str], Iterator[T]]) -> Iterator[T]:
        """The rows that are kept of a file, or those that `reader` finds, which name their place by `name`."""
        about = path.stat()
        key = (name, path.resolve(), about.st_mtime_ns, about.st_size)
        if not self.blocks or about.st_size > MOST_BYTES:
            yield from reader(path, name)
        elif key in self.rows:
            yield from self.rows[key]
        else:
            rows = []
            for row in reader(path, name):
                rows.append(row)
                yield row
            if self.blocks:  # the block may have ended meanwhile
                self.rows[key] = rows

"""Which files are read and written, by how their names end. Pure data: help texts and messages list it too."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lorarlhf.errors import UserError

FileKind = Literal["jsonl", "json", "csv", "tsv", "parquet"]

FILE_KINDS: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json": "json",
    ".json.gz": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
READ = tuple(FILE_KINDS)
WRITTEN = tuple(ending for ending, kind in FILE_KINDS.items() if kind == "jsonl")
LINES = WRITTEN[:1]  # files that are added to line by line, and so not compressed


def file_kind(name: str) -> FileKind | None:
    """What a file of that name holds; None for one that is not read here."""
    return next((kind for ending, kind in FILE_KINDS.items() if name.endswith(ending)), None)


def listed(endings: tuple[str, ...]) -> str:
    """`.csv, .tsv or .parquet`."""
    *others, last = endings
    return f"{', '.join(others)} or {last}" if others else last


def check_ending(path: Path, endings: tuple[str, ...]) -> None:
    """Raise UserError unless a file that is to be written has one of these endings."""
    if not path.name.endswith(endings):
        raise UserError(f"{path}: must end in {listed(endings)}; write for example {path}{endings[0]}")

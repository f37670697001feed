"""Rows, one by one, from a local file or folder or a Hub data set, each with the place to name when it is at fault."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from lorarlhf.data.endings import READ, FileKind, file_kind, listed
from lorarlhf.data.hub import hub_data
from lorarlhf.data.row_cache import RowCache
from lorarlhf.data.rows import BadRow
from lorarlhf.errors import UserError, first_line
from lorarlhf.json_file import read_object
from lorarlhf.recipe.sections import Source
from lorarlhf.recipe.shipped import exists, resolve_path

Row = dict[str, Any]
LocatedRow = tuple[str, Row | BadRow]  # a row that is no object at all comes as the BadRow that says so

MOST_LINE = 2**26  # bytes
MOST_RATIO = 200  # text packs to a third or a tenth
ROW_CACHE: RowCache[LocatedRow] = RowCache()  # of this process: the stages of a recipe read the same files


def iter_rows(source: Source | str, split: str) -> Iterator[LocatedRow]:
    """Yield `(location, row)` from a path or, where it is none, from `split` of the Hub data set of that name.

    Files stream line by line, save .json, which is read whole. A folder is one that `datasets` saved, or one laid out
    like a data set of the Hub; `split` counts there if it holds several. `location` is `prefs.jsonl:17`, or `prefs.csv:
    row 17` in a form without lines of its own; both count from 1. Raises UserError if the source cannot be read.
    """
    if isinstance(source, str):
        source = Source(source=source)
    name = source.source
    if is_hub_like(name):
        yield from _hub(source, split)
        return
    if part := source.name or source.data_dir or source.revision:
        raise UserError(f"{name}: is no Hub data set, and has no {part!r}; name, data_dir and revision are for these")
    if saved_folder(name):
        yield from _saved(name, split)
        return
    path = existing_file(name)
    kind = file_kind(path.name)
    if kind is None:
        raise UserError(f"{name}: unknown kind of file; use {listed(READ)}, or a Hub id")
    try:
        yield from ROW_CACHE.read(name, path, READERS[kind])
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: cannot be read ({first_line(error)}); check the file or fetch it again") from error


def is_path(source: str) -> bool:
    """Whether a source means a local file: it exists, is spelt like a path, or ends like a kind of file known here."""
    path = resolve_path(source)
    return path.startswith((".", "/", "~")) or path.endswith(READ) or exists(Path(path))


def is_hub_like(source: str) -> bool:
    """Whether `datasets` is to make sense of it: a Hub id, or a folder that is laid out like a data set of the Hub."""
    return not is_path(source) or (_is_folder(source) and saved_folder(source) is None)


def _is_folder(source: str) -> bool:
    path = Path(resolve_path(source))
    return exists(path) and path.is_dir()


def existing_file(source: str) -> Path:
    """The file a source names; raises UserError with the nearest names if there is none."""
    path = Path(resolve_path(source))
    if exists(path) and path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{source}: is a folder; name one file in it")
    if not path.parent.is_dir():
        raise UserError(f"{source}: no such file, and no folder {path.parent}; check the path")
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()])
    raise UserError(f"{source}: no such file; " + (f"did you mean {' or '.join(near)}?" if near else "check the path"))


def saved_folder(source: str) -> Path | None:
    """The folder a source names, if `save_to_disk` of `datasets` wrote it."""
    path = Path(resolve_path(source))
    marks = ("dataset_dict.json", "state.json")
    return path if any((path / mark).is_file() for mark in marks) else None


def splits_of(source: Source | str) -> list[str]:
    """Names of the splits of a Hub data set or saved folder; none where a source is a single file or table."""
    if isinstance(source, str):
        source = Source(source=source)
    if is_hub_like(source.source):
        return list(hub_data(source))
    folder = saved_folder(source.source)
    mark = folder / "dataset_dict.json" if folder else None
    if mark is None or not mark.is_file():
        return []
    splits = read_object(mark).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise UserError(f"{mark}: names no splits; save the data set again with `datasets`")
    if bad := next((name for name in splits if not re.fullmatch(r"[\w.-]+", name) or name in (".", "..")), None):
        raise UserError(f"{mark}: {bad[:60]!r} is no name of a split; save the data set again with `datasets`")
    return splits


def split_of(source: Source | str, default: str) -> str:
    """The split to read: the one that the source names by itself, else the default."""
    return (source.split if isinstance(source, Source) else None) or default


def _hub(source: Source, split: str) -> Iterator[LocatedRow]:
    data, name = hub_data(source), source.source
    _check_split(name, split, list(data))
    for number, row in enumerate(data[split], 1):
        yield f"{name} ({split}): row {number}", dict(row)


def _saved(source: str, split: str) -> Iterator[LocatedRow]:
    import datasets

    folder, splits = Path(resolve_path(source)), splits_of(source)
    if splits:
        _check_split(source, split, splits)
    try:
        rows = datasets.load_from_disk(str(folder / split if splits else folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # whatever lies there
        raise UserError(f"{source}: `datasets` cannot read this folder ({first_line(error)})") from error
    for number, row in enumerate(rows, 1):
        yield f"{source}: row {number}", dict(row)


def _check_split(source: str, split: str, splits: list[str]) -> None:
    if split not in splits:
        raise UserError(
            f"{source}: no split {split!r}, it has {', '.join(splits)}; set data.train_split and data.test_split, "
            "or `split` of the source"
        )


def _jsonl(path: Path, source: str) -> Iterator[LocatedRow]:
    with _opened(path) as file:
        for number, line in enumerate(_lines(file, path, source), 1):
            if line.strip():
                yield f"{source}:{number}", _parsed_line(line)


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _lines(file: IO[bytes], path: Path, source: str) -> Iterator[bytes]:
    """Lines one by one. Raises UserError for what would fill the memory or never end, as a packed file can."""
    read, most = 0, _most_bytes(path)
    while line := file.readline(MOST_LINE + 1):
        read += len(line)
        if len(line) > MOST_LINE:
            raise UserError(f"{source}: a line of more than {MOST_LINE:,} bytes, which is no row; check the file")
        if most is not None and read > most:
            raise _packed_too_well(source)
        yield line


def _most_bytes(path: Path) -> int | None:
    """What a packed file may unpack to."""
    return max(MOST_LINE, MOST_RATIO * path.stat().st_size) if path.name.endswith(".gz") else None


def _packed_too_well(source: str) -> UserError:
    return UserError(f"{source}: unpacks to more than {MOST_RATIO} times its size; unpack it yourself if it is of use")


def _parsed_line(line: bytes) -> Row | BadRow:
    try:
        return _object(_parsed(line))
    except UnicodeDecodeError:
        return BadRow("not UTF-8 text")
    except UnicodeEncodeError:
        return BadRow("half of a surrogate pair, which is no text")
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error.msg})")
    except (RecursionError, ValueError) as error:
        return BadRow(_beyond(error))


def _parsed(content: bytes) -> Any:
    """Raises UnicodeEncodeError too: JSON can spell half a character, which nothing could write again."""
    value = json.loads(content.decode(json.detect_encoding(content)))  # strictly: json lets half characters pass
    if b"\\ud" in content.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _beyond(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else "a number of more digits than can be read"


def _json(path: Path, source: str) -> Iterator[LocatedRow]:
    try:
        with _opened(path) as file:
            most = _most_bytes(path)
            raw = file.read() if most is None else file.read(most + 1)
        if most is not None and len(raw) > most:
            raise _packed_too_well(source)
        content = _parsed(raw)
    except UnicodeEncodeError as error:
        raise UserError(f"{source}: holds half of a surrogate pair, which is no text; mend the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line must end in .jsonl" if error.msg == "Extra data" else "; mend the file"
        raise UserError(f"{source}:{error.lineno}: not valid JSON ({error.msg}){hint}") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{source}: {_beyond(error)}; mend the file") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list):
        raise UserError(f"{source}: must hold a list of objects, or one object with a single list in it")
    for number, row in enumerate(content, 1):
        yield f"{source}: row {number}", _object(row)


def _object(value: object) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow("not a JSON object with named columns")


def _csv(path: Path, source: str, delimiter: str = ",") -> Iterator[LocatedRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses responses over 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter=delimiter)
        try:
            for number, row in enumerate(reader, 1):
                yield f"{source}: row {number}", BadRow("more fields than the header") if None in row else row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"{source}:{reader.reader.line_num}: not valid CSV in UTF-8 ({error}); mend the file"
            ) from error


def _parquet(path: Path, source: str) -> Iterator[LocatedRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{source}: row {number}", row
    except (pyarrow.ArrowException, ValueError, OverflowError, MemoryError) as error:  # the latter: impossible dates
        raise UserError(f"{source}: not a valid parquet file ({first_line(error)})") from error


READERS: dict[FileKind, Callable[[Path, str], Iterator[LocatedRow]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": partial(_csv, delimiter="\t"),
    "parquet": _parquet,
}

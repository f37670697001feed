"""The file of labels: one JSON line an answer, only ever appended to, on disk before anyone is told so."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Container, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorarlhf.errors import UserError
from lorarlhf.preferences.appending import open_to_append

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

Side = Literal["a", "b"]
Choice = Literal["a", "b", "tie", "both_bad", "skip"]
LabelKey = tuple[str, bool]  # pair_id, repeat: what one annotator answers once

_BEGINNINGS = (b'{"pair_id": ', b'{"undo": ')


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Label(_Line):
    """One person's answer to one pair. `choice` speaks of `response_a` and `response_b`, wherever they were shown."""

    pair_id: str
    annotator: str
    choice: Choice
    left: Side = Field(description="Which response was shown on the left.")
    repeat: bool = Field(description="The pair came back with sides swapped, to see how consistent the answers are.")
    seconds: Annotated[float, Field(ge=0)] | None = Field(description="None where a platform does not say.")
    strength: Annotated[int, Field(ge=1, le=3)] | None
    comment: str | None
    time: str
    seed: int
    criteria: dict[str, Choice] = Field({}, description="By each scale asked for; by the first of them as `choice`.")


class Undo(_Line):
    """Takes back the annotator's label of the pair `undo`."""

    undo: str
    annotator: str
    repeat: bool
    time: str


class Labels:
    """The labels that stand, by annotator, in the order they were given."""

    def __init__(self) -> None:
        self._by_annotator: dict[str, dict[LabelKey, Label]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_annotator.values()))

    def __iter__(self) -> Iterator[Label]:
        for given in self._by_annotator.values():
            yield from given.values()

    def of(self, annotator: str) -> dict[LabelKey, Label]:
        """What one person has answered, oldest first."""
        return self._by_annotator.get(annotator, {})

    def take(self, line: Label | Undo) -> None:
        """Follow one line of the file."""
        labels = self._by_annotator.setdefault(line.annotator, {})
        labels.pop((line.undo if isinstance(line, Undo) else line.pair_id, line.repeat), None)
        if isinstance(line, Label):
            labels[line.pair_id, line.repeat] = line


class LabelFile:
    """A file of labels open for appending, and the labels in it. One process at a time: a second gets a UserError.

    A line that a crash cut short at the end was never acknowledged: it is cut off, so that every line left is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; choose another place") from error
        try:
            self._lock()
            self._file.seek(0)
            content = self._file.read()
            self.labels, whole = _parsed(content, path)
        except UserError:
            self._file.close()
            raise
        self._file.truncate(whole)
        if content[:whole] and not content[:whole].endswith(b"\n"):
            self._write(b"\n")

    def close(self) -> None:
        """Let the file go, for another process to write to."""
        self._file.close()

    def append(self, label: Label) -> None:
        """Put a label on disk, then among `labels`. Raises OSError, and leaves the file as it was, if that fails."""
        self._append(label)

    def undo(self, annotator: str, pairs: Container[str] | None = None) -> Label | None:
        """Take back the last label of a person that stands, and return it; None if there is none.

        Args:
            pairs: ids of those that are asked, if the file has labels of others too.
        """
        given = reversed(self.labels.of(annotator).values())
        last = next((label for label in given if pairs is None or label.pair_id in pairs), None)
        return self.take_back(last) if last else None

    def take_back(self, label: Label) -> Label:
        """Take back a label that stands, and return it."""
        self._append(Undo(undo=label.pair_id, annotator=label.annotator, repeat=label.repeat, time=now()))
        return label

    def _append(self, line: Label | Undo) -> None:
        self._write(json.dumps(line.model_dump(exclude_defaults=True), ensure_ascii=False).encode() + b"\n")
        self.labels.take(line)

    def _write(self, data: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except OSError:
            raise UserError(
                f"{self.path}: another `lorarlhf collect` writes to it; use its page, or choose another --out"
            ) from None
        folder = os.open(self.path.parent, os.O_RDONLY)  # so that the file's name is on disk too
        os.fsync(folder)
        os.close(folder)


def read_labels(path: Path) -> Labels:
    """The labels that stand in a file, which is left as it is. Raises UserError for a bad line, save a torn last."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a file")  # a device would never end
        return _parsed(path.read_bytes(), path)[0]
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; name a file that `lorarlhf collect` wrote"
        ) from error


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parsed(content: bytes, path: Path) -> tuple[Labels, int]:
    """The labels in a file, and how many of its bytes are whole lines."""
    labels, whole = Labels(), 0
    for number, line in enumerate(io.BytesIO(content), 1):
        try:
            parsed = _line(line) if line.strip() else None
        except ValueError as error:  # not UTF-8, not JSON, not a label
            if not line.endswith(b"\n") and _is_torn(line):
                break
            raise UserError(f"{path}:{number}: not a label ({_reason(error)}); mend or remove the line") from None
        if parsed:
            labels.take(parsed)
        whole += len(line)
    return labels, whole


def _line(line: bytes) -> Label | Undo:
    row = json.loads(line)
    return Undo.model_validate(row) if isinstance(row, dict) and "undo" in row else Label.model_validate(row)


def _is_torn(line: bytes) -> bool:
    """Whether it is the beginning of a line written here: anything else may be someone's text, not to be cut off."""
    return any(line.startswith(beginning) or beginning.startswith(line) for beginning in _BEGINNINGS)


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not valid JSON"

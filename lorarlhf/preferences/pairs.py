"""The pairs to compare: two responses to one prompt, not yet said which is better."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from lorarlhf.data.formats import PREFERENCES
from lorarlhf.data.formats.values import messages, text
from lorarlhf.data.reading import Reader
from lorarlhf.data.rows import BadRow, Completion, Message, Prompt
from lorarlhf.data.sources import LocatedRow, existing_file, iter_rows
from lorarlhf.errors import UserError
from lorarlhf.preferences.appending import open_to_append


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two different responses: all three text, or all three messages."""

    id: str
    prompt: Prompt
    response_a: Completion
    response_b: Completion
    source: str | None = None


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a file, in its order, each once.

    Rows have `prompt`, `response_a` and `response_b`, and may have `pair_id` and `source`; or they are preferences in
    any known format, whose chosen response becomes `response_a`. Without `pair_id`, a hash of the texts serves. Raises
    UserError for a file or row that cannot be used, and for an id that two different pairs have.
    """
    rows = iter_rows(str(existing_file(str(path))), "train")
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: holds no pairs; `lorarlhf sample` writes some")
    rows = chain([first], rows)
    pairs: dict[str, Pair] = {}
    for pair in _unlabelled(rows) if isinstance(first[1], dict) and "response_a" in first[1] else _preferences(rows):
        if pairs.setdefault(pair.id, pair) != pair:
            raise UserError(f"{path}: pair_id {pair.id!r} stands for two different pairs; give each its own")
    return list(pairs.values())


def make_pair(prompt: Prompt, a: Completion, b: Completion, source: str | None = None) -> Pair:
    """A pair whose id is a hash of what is in it. Raises BadRow for what is no text."""
    return Pair(_hash(prompt, a, b, source), prompt, a, b, source)


def append_pair(path: Path, pair: Pair) -> None:
    """Put a pair at the end of a .jsonl file, on disk, as `read_pairs` reads it. Raises OSError if that fails."""
    row = {"pair_id": pair.id, "prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b}
    line = json.dumps(row | ({"source": pair.source} if pair.source else {}), ensure_ascii=False).encode() + b"\n"
    with open_to_append(path) as file:
        if file.tell():  # a last line that somebody wrote without its end
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def _unlabelled(rows: Iterable[LocatedRow]) -> Iterator[Pair]:
    for location, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            yield _pair(row)
        except BadRow as bad:
            raise UserError(f"{location}: {bad}; mend or remove the row") from None


def _preferences(rows: Iterable[LocatedRow]) -> Iterator[Pair]:
    for preference in Reader(PREFERENCES).read(rows):
        texts = (preference.prompt, preference.chosen, preference.rejected)
        try:
            yield make_pair(*texts)
        except BadRow as bad:
            raise UserError(f"a pair {bad}; remove the one with the prompt {preference.prompt!r}") from None


def _pair(row: dict[str, Any]) -> Pair:
    prompt, a, b = (
        messages(row, column) if isinstance(row.get(column), list) else text(row, column)
        for column in ("prompt", "response_a", "response_b")
    )
    if not all(isinstance(value, str) for value in (prompt, a, b)):
        prompt, a, b = _as_messages(prompt, "user"), _as_messages(a, "assistant"), _as_messages(b, "assistant")
    if a == b:
        raise BadRow("response_a and response_b are identical")
    source = row.get("source")
    identity = row.get("pair_id")
    hashed = _hash(prompt, a, b)
    if identity in (None, ""):
        identity = hashed
    elif isinstance(identity, bool) or not isinstance(identity, str | int):
        raise BadRow("pair_id is neither text nor a whole number")
    return Pair(str(identity), prompt, a, b, source if isinstance(source, str) and source else None)


def _hash(prompt: Prompt, a: Completion, b: Completion, source: str | None = None) -> str:
    content = [prompt, a, b] if source is None else [prompt, a, b, source]
    try:
        texts = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        raise BadRow("holds half of a surrogate pair, which is no text") from None
    return blake2b(texts, digest_size=8).hexdigest()


def _as_messages(value: str | list[Message], role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value

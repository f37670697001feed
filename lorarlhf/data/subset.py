"""A random part of many rows, by a hash of each: no seed, no list to keep, and the same in every run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import TypeVar

from lorarlhf.data.rows import (
    Completion,
    Demonstration,
    Preference,
    PromptRow,
    Scored,
    completion_text,
    prompt_text,
    turns,
)

T = TypeVar("T")
U = TypeVar("U")


def rank(row: Preference | Demonstration | Scored | PromptRow) -> int:
    """Where a row stands in a random order of all rows there could be; its text decides, not its place in a file.

    Plain text stands where it does as a conversation, so that one model's part of a file is another's.
    """
    completions: list[Completion] = []
    if isinstance(row, Preference):
        completions = [row.chosen, row.rejected]
    elif not isinstance(row, PromptRow):
        completions = [row.completion]
    # Salted: what is held out is picked by a hash of the prompt too, and the two choices are not to be related.
    digest = blake2b(digest_size=8, person=b"subset")
    said = [completion_text(turns(completion, "assistant")) for completion in completions]
    for text in (prompt_text(turns(row.prompt, "user")), *said):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return int.from_bytes(digest.digest(), "big")


def first_by_rank(
    rows: Iterable[T], limit: int | None, rank: Callable[[T], int], make: Callable[[T], U | None]
) -> Iterator[U]:
    """What `make` makes of the `limit` rows of lowest rank that it makes something of, in the order of their ranks.

    So the first k of them are those that a limit of k would give. Rows are gone through once, and `make`, which is
    dear, is called of few more than are kept: of about limit x (1 + log(rows / limit)) (Cohen & Kaplan 2007, bottom-k
    sketches). In memory is what is kept. Without a limit it is called of all of them, in the order of the rows.
    """
    if limit is None:
        yield from (made for row in rows if (made := make(row)) is not None)
        return
    kept: list[tuple[int, int, U]] = []  # a heap, the highest rank on top; of equal rows those that come first are kept
    for number, row in enumerate(rows):
        place = (-rank(row), -number)
        if len(kept) == limit and place < kept[0][:2]:
            continue
        made = make(row)
        if made is None:
            continue
        if len(kept) == limit:
            heapq.heapreplace(kept, (*place, made))
        else:
            heapq.heappush(kept, (*place, made))
    yield from (made for _, _, made in sorted(kept, key=lambda item: item[:2], reverse=True))

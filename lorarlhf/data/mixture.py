"""Several sources read as one: how many rows of each are taken, which these are, and in which order they come.

`datasets.interleave_datasets` asks for equal columns and takes what stands first in each file. Here each source is read
in its own format, and which prompts are taken is up to a hash of their text, as it is with `data.max_examples`.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from operator import itemgetter
from typing import TypeVar

from lorarlhf.data.rows import Prompt, prompt_text, turns
from lorarlhf.recipe.sections import Source

T = TypeVar("T")
ALL = 2**64  # above every place


def place_of(prompt: Prompt) -> int:
    """Where a prompt stands in a random order of all there could be; text stands where it does as a conversation."""
    # Salted: what is held out and what `data.max_examples` draws are picked by hashes too, none related to another.
    text = prompt_text(turns(prompt, "user")).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8, person=b"mixture").digest(), "big")


def shares(sources: Sequence[Source], rows: Sequence[int]) -> list[int]:
    """How many of each source's rows are taken, in all: as many as its `max_examples` and the weights allow.

    Args:
        sources: all of them weighed, or none.
        rows: how many of use each has.
    """
    most = [min(count, source.max_examples or count) for source, count in zip(sources, rows, strict=True)]
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return most
    unit = min(count / weight for count, weight in zip(most, weights, strict=True))
    return [round(unit * weight) for weight in weights]


def bound(places: array[int], rows: int) -> int:
    """The place before which `rows` of these places lie; fewer where a prompt with more rows than are left is next."""
    if rows >= len(places):
        return ALL
    return sorted(places)[rows]


def evenly(parts: Sequence[Iterable[T]], sizes: Sequence[float]) -> Iterator[tuple[int, T]]:
    """The rows of all parts, each with the number of its part, those of a part spread over the whole.

    Any first few are then of all parts, as their sizes ask. Rows are asked for one by one.
    """

    def spread(number: int) -> Iterator[tuple[float, int, T]]:
        return (((i + 0.5) / sizes[number], number, row) for i, row in enumerate(parts[number]))

    merged = heapq.merge(*map(spread, range(len(parts))), key=itemgetter(0, 1))
    return ((number, row) for _, number, row in merged)

"""Look through a source once, in memory that hardly grows with it: what it holds, and what is wrong with it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from lorarlhf.data.formats import DEMONSTRATIONS, PREFERENCES, PROMPTS, SCORED, Table
from lorarlhf.data.reading import FIRST_ROWS, Reader, some_fit
from lorarlhf.data.rows import (
    Completion,
    Example,
    Preference,
    Prompt,
    completion_text,
    prompt_text,
    turns,
)
from lorarlhf.data.sources import iter_rows, split_of, splits_of
from lorarlhf.recipe.sections import Column, Source

Measure: TypeAlias = Callable[[Prompt, Completion], tuple[int, int]]

EXAMPLES = 3


@dataclass(frozen=True)
class Lengths:
    """Of the prompts, the chosen or the rejected responses: median, 95th percentile and longest."""

    median: float
    p95: float
    longest: int


@dataclass(frozen=True)
class Report:
    """What a source holds.

    Attributes:
        kind, format, why: comparisons, scored completions, demonstrations or prompts; the format and what gave it away.
        rows: rows of the source, good or bad. pairs: what they hold of the kind, ties among them.
        duplicates: pairs that were there before, word for word.
        bad: for each reason why a row or pair is of no use, how many and where first.
        prompts: different prompts; shared: those of them that the test rows have too, if there are test rows.
        lengths: in tokens or characters, for each of `prompt`, `chosen`, `rejected` or `completion`.
        too_long: the share of pairs with a side over `max_length` tokens.
        longer_wins: the share of decided pairs of unequal length whose longer response is the chosen one.
    """

    kind: str
    format: str
    why: str
    rows: int
    pairs: int
    ties: int
    duplicates: int
    bad: dict[str, tuple[int, str]]
    prompts: int
    shared: int | None
    lengths: dict[str, Lengths]
    too_long: float
    longer_wins: float | None
    examples: list[Example]


def inspect_source(
    source: Source | str,
    split: str,
    columns: Mapping[Column, str],
    measure: Measure,
    max_length: int,
    test: tuple[Source | str, str] | None = None,
    most: int | None = None,
) -> Report:
    """Read a source to its end, or its first rows. Bad rows are counted; unknown columns are a UserError.

    It keeps 8 bytes a prompt and a pair, hashes of their text, and 4 a length.

    Args:
        split: read where the source names none by itself.
        columns: as in `data.columns`.
        measure: lengths of a prompt and of a completion of it.
        test: source and split of the test rows whose prompts must not be in this one.
        most: rows to read; None reads all.
    """
    split = split_of(source, split)
    reader: Reader[Any] = Reader(table_of(source, split, columns), "skip", columns)
    tally = _Tally(measure, max_length)
    for example in reader.read(islice(iter_rows(source, split), most)):
        tally.add(example)
    prompts = _distinct(tally.prompts)
    shared = None
    if test is not None:
        test_reader: Reader[Any] = Reader(reader.table, "skip", columns)
        tested = (_hash(sides(example)[0]) for example in test_reader.read(iter_rows(*test)))
        shared = len(np.intersect1d(prompts, _distinct(array("Q", tested)), assume_unique=True))
    return Report(
        kind=reader.table.kind,
        format=reader.form.name if reader.form else "none",
        why=reader.why or "no row could be read",
        rows=reader.rows,
        pairs=len(tally.pairs),
        ties=tally.ties,
        duplicates=len(tally.pairs) - len(_distinct(tally.pairs)),
        bad={reason: (count, reader.first[reason]) for reason, count in reader.skipped.most_common()},
        prompts=len(prompts),
        shared=shared,
        lengths={name: _summary(lengths) for name, lengths in tally.lengths.items()},
        too_long=tally.too_long / max(len(tally.pairs), 1),
        longer_wins=tally.longer_wins / tally.unequal if tally.unequal else None,
        examples=tally.examples,
    )


def held_out(source: Source | str, split: str, test: Source | str | None) -> tuple[Source | str, str] | None:
    """Source and split of the test rows: those of `test`, else the split `test` of a source that has one."""
    if test is not None:
        return test, split_of(test, "") or ("test" if "test" in splits_of(test) else "train")
    return (source, "test") if split_of(source, split) != "test" and "test" in splits_of(source) else None


def characters(prompt: Prompt, completion: Completion) -> tuple[int, int]:
    """A measure for want of a tokenizer."""
    return len(prompt_text(prompt)), len(completion_text(completion))


class _Tally:
    """What is counted in passing."""

    def __init__(self, measure: Measure, max_length: int) -> None:
        self.measure = measure
        self.max_length = max_length
        self.prompts, self.pairs = array("Q"), array("Q")
        self.lengths: dict[str, array[int]] = {}
        self.ties = self.too_long = self.longer_wins = self.unequal = 0
        self.examples: list[Example] = []

    def add(self, example: Example) -> None:
        prompt, completions = sides(example)
        self.prompts.append(_hash(prompt))
        self.pairs.append(_hash(prompt, *completions.values()))
        measured = {name: self.measure(prompt, completion) for name, completion in completions.items()}
        opening = next(iter(measured.values()))[0] if measured else self.measure(prompt, "")[0]
        for name, length in [("prompt", opening), *((name, length) for name, (_, length) in measured.items())]:
            self.lengths.setdefault(name, array("I")).append(length)
        self.too_long += max(map(sum, measured.values()), default=opening) > self.max_length
        if isinstance(example, Preference):
            chosen, rejected = measured["chosen"][1], measured["rejected"][1]
            self.ties += example.tie
            self.unequal += not example.tie and chosen != rejected
            self.longer_wins += not example.tie and chosen > rejected
        if len(self.examples) < EXAMPLES and not (self.examples and sides(self.examples[-1])[0] == prompt):
            self.examples.append(example)


def table_of(source: Source | str, split: str, columns: Mapping[Column, str]) -> Table[Any]:
    """The kind of data the first rows hold; comparisons if they are of no kind, so that the error speaks of these."""
    first = list(islice(iter_rows(source, split), FIRST_ROWS))
    tables: tuple[Table[Any], ...] = (PREFERENCES, SCORED, DEMONSTRATIONS, PROMPTS)
    return next((table for table in tables if some_fit(first, table, columns)), PREFERENCES)


def sides(example: Example) -> tuple[Prompt, dict[str, Completion]]:
    """Prompt and completions of whatever kind of data, the completions by name."""
    if isinstance(example, Preference):
        return example.prompt, {"chosen": example.chosen, "rejected": example.rejected}
    if isinstance(example, str | list):
        return example, {}
    return example.prompt, {"completion": example.completion}


def _hash(prompt: Prompt, *completions: Completion) -> int:
    """Of text as of the conversation that it becomes: one file may have the one, and the test data the other."""
    digest = blake2b(prompt_text(turns(prompt, "user")).encode("utf-8", "surrogatepass"), digest_size=8)
    for completion in completions:
        said = completion_text(turns(completion, "assistant"))
        digest.update(b"\0" + said.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "big")


def _distinct(hashes: array[int]) -> np.ndarray:
    return np.unique(np.frombuffer(hashes, dtype=np.uint64)) if hashes else np.empty(0, np.uint64)


def _summary(lengths: Iterable[int]) -> Lengths:
    values = np.asarray(lengths)
    median, p95 = np.percentile(values, [50, 95])
    return Lengths(float(median), float(p95), int(values.max()))

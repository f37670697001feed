"""Load what a stage trains or is tested on: a recipe's `data` section in, canonical rows out."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from lorarlhf.data.formats import CHOICES, DEMONSTRATIONS, PREFERENCES, PROMPTS, SCORED, Table
from lorarlhf.data.reading import FIRST_ROWS, Reader, some_fit
from lorarlhf.data.rows import (
    NO_COLUMNS,
    Choice,
    ColumnsWanted,
    Demonstration,
    Preference,
    Prompt,
    PromptRow,
    Scored,
    prompt_text,
)
from lorarlhf.data.sources import existing_file, is_path, iter_rows, saved_folder, splits_of
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig, DataKey

T = TypeVar("T")
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
LIMITS: dict[Split, Literal["max_examples", "eval_examples"]] = {"train": "max_examples", "test": "eval_examples"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Rows of one split, the source they came from, and how many were left out for which reason."""

    rows: list[T]
    source: str
    skipped: dict[str, int]


@dataclass(frozen=True)
class Place:
    """Where one split lies: a source, its split if it has several, and the test of a prompt that keeps a row."""

    source: str
    split: str
    keeps: Callable[[Prompt], bool]


@dataclass
class Stream(Generic[T]):
    """Rows of one split, read from their source one by one as they are asked for, and again in each pass.

    Attributes:
        on_tie: called with each tie that is left out.
        skipped: how many were left out for which reason, in the last pass.
    """

    config: DataConfig
    key: DataKey
    split: Split
    table: Table[T]
    prompt_of: Callable[[T], Prompt]
    on_tie: Callable[[Preference], None] | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[T]:
        """Raises UserError for what the user can mend, at the end too: if no row was of use."""
        return (row for row, _ in self.with_columns(NO_COLUMNS))

    def with_columns(self, wanted: ColumnsWanted) -> Iterator[tuple[T, dict[str, Any]]]:
        """The same, each with those columns of its source's row that are wanted."""
        config, split = self.config, self.split
        place = _place(config, self.key, split)
        reader = Reader(self.table, config.on_bad_row, config.columns)
        self.skipped = reader.skipped
        usable = kept = 0
        for row, columns in reader.read_with_columns(iter_rows(place.source, place.split), wanted):
            if isinstance(row, Preference) and row.tie and (config.ties == "drop" or split == "test"):
                reader.skipped["tie"] += 1
                if self.on_tie and place.keeps(row.prompt):
                    self.on_tie(row)
                continue
            usable += 1
            if place.keeps(self.prompt_of(row)):
                kept += 1
                yield row, columns
        why = "; ".join(f"{reason} ({count})" for reason, count in reader.skipped.most_common())
        if not usable:
            raise UserError(
                f"{place.source}: no usable row" + (f", all were skipped: {why}" if why else ", it is empty")
            )
        if not kept and (split == "train" or config.test_size > 0):
            raise UserError(
                f"{place.source}: none of {usable} rows falls in the {split} part at data.test_size "
                f"{config.test_size}; change it, or set data.{self.key}_test"
            )
        if why and split == "train":  # once: the test rows are often of the same source
            logger.warning("%s: left out: %s", place.source, why)

    def is_of_its_kind(self) -> bool:
        """Whether the first rows of the source are data of this kind. Raises UserError if it cannot be read."""
        place = _place(self.config, self.key, self.split)
        return some_fit(islice(iter_rows(place.source, place.split), FIRST_ROWS), self.table, self.config.columns)

    @property
    def source(self) -> str:
        """Where the rows come from."""
        return _place(self.config, self.key, self.split).source

    def load(self) -> Loaded[T]:
        """All of them in memory."""
        rows = list(self)
        return Loaded(rows, self.source, dict(self.skipped))


def limit_of(config: DataConfig, split: Split) -> int | None:
    """How many rows of a split are wanted at most, once it is known which of them are short enough; None is all."""
    limit: int | None = getattr(config, LIMITS[split])
    return limit


def stream_preferences(config: DataConfig, split: Split) -> Stream[Preference]:
    """Pairs from `data.preferences`.

    Test rows come from `data.preferences_test` if it is set, else from `data.test_split` of a Hub data set that has it,
    else they are the `data.test_size` share of prompts picked by a hash: the same in every run, and no prompt in both
    parts. They are empty only where `data.test_size` is 0.
    Ties are kept to train on if `data.ties` says so, never to test on: they have no right answer.
    """
    return Stream(config, "preferences", split, PREFERENCES, lambda row: row.prompt)


def stream_choices(config: DataConfig, split: Split) -> Stream[Choice]:
    """Right and wrong answers from `data.preferences`, where its rows are of that kind."""
    return Stream(config, "preferences", split, CHOICES, lambda row: row.prompt)


def stream_scored(config: DataConfig, split: Split) -> Stream[Scored]:
    """Completions with absolute scores from `data.preferences`, for `reward.objective: regression`."""
    return Stream(config, "preferences", split, SCORED, lambda row: row.prompt)


def stream_demonstrations(config: DataConfig, split: Split) -> Stream[Demonstration]:
    """Completions to imitate from `data.sft`; of preference data, the chosen ones."""
    return Stream(config, "sft", split, DEMONSTRATIONS, lambda row: row.prompt)


def load_preferences(config: DataConfig, split: Split) -> Loaded[Preference]:
    """`stream_preferences`, all in memory. Raises UserError, as all loaders here, for what the user can mend."""
    return stream_preferences(config, split).load()


def load_scored(config: DataConfig, split: Split) -> Loaded[Scored]:
    """`stream_scored`, all in memory."""
    return stream_scored(config, split).load()


def load_demonstrations(config: DataConfig, split: Split) -> Loaded[Demonstration]:
    """`stream_demonstrations`, all in memory."""
    return stream_demonstrations(config, split).load()


def load_prompts(config: DataConfig, split: Split) -> Loaded[Prompt]:
    """Different prompts from `data.prompts`, or those of `data.preferences` where it is not set."""
    loaded = load_prompt_rows(config, split, NO_COLUMNS)
    return Loaded([row.prompt for row in loaded.rows], loaded.source, loaded.skipped)


def load_prompt_rows(config: DataConfig, split: Split, wanted: ColumnsWanted) -> Loaded[PromptRow]:
    """The same with columns; a prompt that comes again with other values in them is another one."""
    source = config.prompts or (config.prompts_test if split == "test" else None)
    key: DataKey = "prompts" if source or not config.preferences else "preferences"
    stream = Stream(config, key, split, PROMPTS, lambda prompt: prompt)
    distinct: dict[str, PromptRow] = {}
    repeated = 0
    for prompt, columns in stream.with_columns(wanted):
        what = json.dumps([prompt_text(prompt), columns], default=repr, sort_keys=True)
        repeated += what in distinct
        distinct.setdefault(what, PromptRow(prompt, columns))
    skipped = dict(stream.skipped) | ({"repeated prompt": repeated} if repeated else {})
    return Loaded(list(distinct.values()), stream.source, skipped)


def first_prompt(config: DataConfig, keys: Sequence[DataKey]) -> Prompt:
    """A prompt of the first of these sources that is set, to see of which form they are."""
    key = next((key for key in keys if getattr(config, key)), keys[0])
    return next(iter(Stream(config, key, "train", PROMPTS, lambda prompt: prompt)))


def check_sources(config: DataConfig, keys: Sequence[DataKey], online: bool = True) -> None:
    """See that the files are there, of the first of these sources that is set and of the held-out part, and read a row.

    Args:
        online: ask the Hub too, where the data lie there.

    Raises:
        UserError: a file is not there, none of the sources is set, or the row is of no known form.
    """
    source = next((source for key in keys if (source := getattr(config, key))), None)
    test = getattr(config, f"{keys[0]}_test")
    for named in (source, test):
        if named and is_path(named) and not saved_folder(named):
            existing_file(named)
    if online or (source and is_path(source)):
        first_prompt(config, keys)


def holds_out(config: DataConfig, keys: Sequence[DataKey]) -> bool:
    """Whether the first of these sources that is set leaves anything to test on."""
    key = next((key for key in keys if getattr(config, key)), keys[0])
    source, test = getattr(config, key), getattr(config, f"{key}_test") or getattr(config, f"{keys[0]}_test")
    return bool(test or config.test_size or (source and config.test_split in splits_of(source)))


def in_test_part(prompt: Prompt, test_size: float) -> bool:
    """Whether a prompt belongs to the held-out share, by a hash of its text: no seed, no order, no list to keep."""
    digest = blake2b(prompt_text(prompt).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < test_size * 2**64


def _place(config: DataConfig, key: DataKey, split: Split) -> Place:
    source: str | None = getattr(config, key)
    test_source: str | None = getattr(config, f"{key}_test")
    if split == "test" and test_source:
        return Place(test_source, config.test_split, _keep_all)
    if source is None:
        instead = " (or data.preferences, for their prompts)" if key == "prompts" else ""
        raise UserError(f"data.{key} is not set{instead}; name a Hub id or a file there or with --dataset")
    if test_source:
        return Place(source, config.train_split, _keep_all)
    if config.test_split in splits_of(source):
        return Place(source, config.train_split if split == "train" else config.test_split, _keep_all)
    wanted = split == "test"
    return Place(source, config.train_split, lambda prompt: in_test_part(prompt, config.test_size) == wanted)


def _keep_all(prompt: Prompt) -> bool:
    return True

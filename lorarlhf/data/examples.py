"""Load what a stage trains or is tested on: a recipe's `data` section in, canonical rows out."""

from __future__ import annotations

import functools
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from lorarlhf.data.formats import CHOICES, DEMONSTRATIONS, PREFERENCES, PROMPTS, SCORED, Table
from lorarlhf.data.mixture import ALL, bound, evenly, place_of, shares
from lorarlhf.data.progress import with_progress
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
    turns,
)
from lorarlhf.data.sources import existing_file, is_hub_like, is_path, iter_rows, saved_folder, splits_of
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig, DataKey, Source, sources_of, title_of

T = TypeVar("T")
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
LIMITS: dict[Split, Literal["max_examples", "eval_examples"]] = {"train": "max_examples", "test": "eval_examples"}
FEW = 20  # held-out rows: a share of 20 has a standard error of up to 11 points
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Rows of one split, the source they came from, and how many were left out for which reason."""

    rows: list[T]
    source: str
    skipped: dict[str, int]


@dataclass(frozen=True)
class Place:
    """Where rows of one split lie: a source, its split if it has several, and the test of a prompt that keeps a row."""

    source: Source
    split: str
    keeps: Callable[[Prompt], bool]


@dataclass
class Stream(Generic[T]):
    """Rows of one split, read from their sources one by one as they are asked for, and again in each pass.

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
        return (found for found, _ in self.with_sources(wanted))

    def with_sources(self, wanted: ColumnsWanted) -> Iterator[tuple[tuple[T, dict[str, Any]], Source]]:
        """The same, each with the source that it comes from, too."""
        config, split, places = self.config, self.split, self.places()
        bounds, sizes = self._drawn(places)
        self.skipped = Counter()
        usable = kept = 0

        def part(place: Place, bound: int) -> Iterator[tuple[T, dict[str, Any]]]:
            nonlocal usable
            for row, columns in self._usable(place, wanted, self.skipped):
                usable += 1
                prompt = self.prompt_of(row)
                if place.keeps(prompt) and (bound == ALL or place_of(prompt) < bound):
                    yield row, columns

        for number, found in evenly(list(map(part, places, bounds)), sizes):
            kept += 1
            yield found, places[number].source
        if not kept and (split == "train" or config.test_size > 0):
            raise UserError(
                f"{self.source}: none of {usable} rows falls in the {split} part at data.test_size "
                f"{config.test_size}; change it, or set data.{self.key}_test"
            )
        if split == "test" and kept < FEW and places[0].keeps is not _keep_all and config.test_size > 0:
            _say_few(self.source, kept, usable, config.test_size, self.key)

    def first(self, place: Place) -> T:
        """The first row of use that lies there, of whichever part. Raises UserError if there is none."""
        return next(self._usable(place, NO_COLUMNS, Counter()))[0]

    def check(self) -> None:
        """Read a row of each source. Raises UserError for what the user can mend."""
        for place in self.places():
            self.first(place)

    def is_of_its_kind(self) -> bool:
        """Whether the first rows of each source are data of this kind. Raises UserError if one cannot be read."""
        heads = (islice(iter_rows(place.source, place.split), FIRST_ROWS) for place in self.places())
        return all(some_fit(head, self.table, self.config.columns) for head in heads)

    @property
    def source(self) -> str:
        """Where the rows come from, in words."""
        return title_of(place.source for place in self.places())

    def load(self) -> Loaded[T]:
        """All of them in memory."""
        rows = list(self)
        return Loaded(rows, self.source, dict(self.skipped))

    def places(self) -> list[Place]:
        """Where the rows lie. Raises UserError if the recipe does not say."""
        return _places(self.config, self.key, self.split)

    def _usable(
        self, place: Place, wanted: ColumnsWanted, skipped: Counter[str], counting: bool = False
    ) -> Iterator[tuple[T, dict[str, Any]]]:
        """What a source has for either part: ties only where they are wanted.

        Args:
            skipped: gets what is left out, by reason, when the end is reached.
            counting: say nothing and hand on no tie: the rows will be read again.
        """
        config, title = self.config, str(place.source)
        reader = Reader(self.table, config.on_bad_row, config.columns)
        usable = 0
        rows = with_progress(iter_rows(place.source, place.split), f"{title}: {'counted' if counting else 'read'}")
        for row, columns in reader.read_with_columns(rows, wanted):
            if isinstance(row, Preference) and row.tie and (config.ties == "drop" or self.split == "test"):
                reader.skipped["tie"] += 1
                if self.on_tie and not counting and place.keeps(row.prompt):
                    self.on_tie(row)
                continue
            usable += 1
            yield row, columns
        why = "; ".join(f"{reason} ({count})" for reason, count in reader.skipped.most_common())
        if not usable:
            raise UserError(f"{title}: no usable row" + (f", all were skipped: {why}" if why else ", it is empty"))
        if why and self.split == "train" and not counting:  # once: the test rows are often of the same source
            logger.warning("%s: left out: %s", title, why)
        skipped.update(reader.skipped)

    def _drawn(self, places: Sequence[Place]) -> tuple[list[int], list[float]]:
        """For each source the place of a prompt (`place_of`) from which on its rows are left out, and its share.

        Where weights or limits ask for it, sources are read once more to count their rows, at 8 bytes a row.
        """
        sources = [place.source for place in places]
        if not any(source.weight or source.max_examples for source in sources):
            return [ALL] * len(places), [1.0] * len(places)
        counted = [
            array("Q", (place_of(self.prompt_of(row)) for row, _ in self._usable(place, NO_COLUMNS, Counter(), True)))
            for place in places
        ]
        wanted = shares(sources, list(map(len, counted)))
        return [bound(order, rows) for order, rows in zip(counted, wanted, strict=True)], [max(n, 1.0) for n in wanted]


@functools.cache
def _say_few(source: str, kept: int, usable: int, test_size: float, key: DataKey) -> None:
    """Once a process: the stages of a recipe ask for the same rows, one after the other."""
    logger.warning(
        "%s: held out: %d of %d rows (data.test_size %s), too few to tell much; raise it, or set data.%s_test",
        *(source, kept, usable, test_size, key),
    )


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


def load_demonstrations(config: DataConfig, split: Split) -> Loaded[Demonstration]:
    """`stream_demonstrations`, all in memory."""
    return stream_demonstrations(config, split).load()


def load_prompt_rows(config: DataConfig, split: Split, wanted: ColumnsWanted) -> Loaded[PromptRow]:
    """Different prompts from `data.prompts`, or those of `data.preferences` where it is not set.

    A prompt that comes again with other values in the columns that are wanted is another one.
    """
    source = config.prompts or (config.prompts_test if split == "test" else None)
    key: DataKey = "prompts" if source or not config.preferences else "preferences"
    stream = _prompts(config, key, split)
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
    stream = _prompts(config, _first_set(config, keys), "train")
    return stream.first(stream.places()[0])


def check_sources(config: DataConfig, keys: Sequence[DataKey], online: bool = True) -> None:
    """See that the files are there, of the first of these sources that is set and of the held-out part, and read a row
    of each; of held-out data with a name of their own where the Hub may be asked.

    Args:
        online: ask the Hub too, where the data lie there.

    Raises:
        UserError: a file is not there, none of the sources is set, or the row is of no known form.
    """
    key = _first_set(config, keys)
    named = sources_of(getattr(config, key))
    for source in (*named, *sources_of(getattr(config, f"{keys[0]}_test"))):
        if is_path(source.source) and not saved_folder(source.source) and not is_hub_like(source.source):
            existing_file(source.source)
    if online or lie_here(config, keys):
        _prompts(config, key, "train").check()
    if online:
        for each in dict.fromkeys((keys[0], key)):
            if getattr(config, f"{each}_test"):
                _prompts(config, each, "test").check()


def lie_here(config: DataConfig, keys: Sequence[DataKey]) -> bool:
    """Whether the first of these sources that is set can be read without asking the Hub."""
    named = sources_of(getattr(config, _first_set(config, keys)))
    return bool(named) and all(is_path(source.source) for source in named)


def holds_out(config: DataConfig, keys: Sequence[DataKey]) -> bool:
    """Whether the first of these sources that is set leaves anything to test on."""
    key = _first_set(config, keys)
    test = getattr(config, f"{key}_test") or getattr(config, f"{keys[0]}_test")
    return bool(test or config.test_size or _own_test_split(config, sources_of(getattr(config, key))))


def in_test_part(prompt: Prompt, test_size: float) -> bool:
    """Whether a prompt belongs to the held-out share, by a hash of its text: no seed, no order, no list to keep."""
    digest = blake2b(prompt_text(prompt).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < test_size * 2**64


def _prompts(config: DataConfig, key: DataKey, split: Split) -> Stream[Prompt]:
    return Stream(config, key, split, PROMPTS, lambda prompt: prompt)


def _first_set(config: DataConfig, keys: Sequence[DataKey]) -> DataKey:
    return next((key for key in keys if getattr(config, key)), keys[0])


def _places(config: DataConfig, key: DataKey, split: Split) -> list[Place]:
    sources, tests = sources_of(getattr(config, key)), sources_of(getattr(config, f"{key}_test"))
    if split == "test" and tests:
        return [Place(source, source.split or config.test_split, _keep_all) for source in tests]
    if not sources:
        instead = " (or data.preferences, for their prompts)" if key == "prompts" else ""
        raise UserError(f"data.{key} is not set{instead}; name a Hub id or a file there or with --dataset")
    if split == "test" and _own_test_split(config, sources):
        return [Place(source, config.test_split, _keep_all) for source in sources]
    keeps = _keep_all if tests or _own_test_split(config, sources) else _in_part(split, config, len(sources) > 1)
    return [Place(source, source.split or config.train_split, keeps) for source in sources]


def _own_test_split(config: DataConfig, sources: Sequence[Source]) -> bool:
    """Whether what is held out is a split of the source's own.

    Not of several sources: what one holds out, another may have among its prompts to train on.
    """
    if len(sources) != 1 or (sources[0].split or config.train_split) == config.test_split:
        return False
    return config.test_split in splits_of(sources[0])


def _in_part(split: Split, config: DataConfig, mixed: bool) -> Callable[[Prompt], bool]:
    """Whether a prompt is of this part. In a mixture, one source may have as text what another has as conversation."""

    def is_of_it(prompt: Prompt) -> bool:
        return in_test_part(turns(prompt, "user") if mixed else prompt, config.test_size) == (split == "test")

    return is_of_it


def _keep_all(prompt: Prompt) -> bool:
    return True

"""One data set, or several that are read as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

from lorarlhf.recipe.sections.section import PositiveFloat, PositiveInt, Section

BETWEEN = " + "  # sources that are named together


class Source(Section):
    """A data set, where its name alone does not say which part of it is meant."""

    source: str = Field(min_length=1)
    """Hub id, path of a file, or a folder: one that `datasets` saved, or one laid out like a data set of the Hub."""

    name: str | None = None
    """Configuration (subset) of a Hub data set that has several, as the Hub calls it."""

    data_dir: str | None = None
    """Folder within a Hub data set to read, as helpful-base of Anthropic/hh-rlhf; null reads the whole."""

    revision: str | None = None
    """Commit, tag or branch of a Hub data set; null takes the newest. Name a commit to have the same rows for ever."""

    split: str | None = None
    """Split to read, in place of `data.train_split` (of a test source: `data.test_split`)."""

    weight: PositiveFloat | None = None
    """Share of the rows of several sources, to those of the others: 3 and 1 take three rows of one for each of the
    other, as many as there are. null takes all; weigh all sources of a list or none."""

    max_examples: PositiveInt | None = None
    """The most rows to take of this source, drawn at random by whole prompts; null takes all."""

    def __str__(self) -> str:
        """What it is called where people read of it: `Anthropic/hh-rlhf (helpful-base)`."""
        parts = [part for part in (self.name, self.data_dir, self.revision, self.split) if part]
        return self.source + (f" ({', '.join(parts)})" if parts else "")


def _weighed(value: str | Source | list[str | Source]) -> str | Source | list[str | Source]:
    sources = sources_of(value)
    if not sources:
        raise ValueError("names no source; name one, or take the key out")
    weighed = [source for source in sources if source.weight is not None]
    if weighed and len(weighed) < len(sources):
        missing = next(source for source in sources if source.weight is None)
        raise ValueError(f"{missing} has no weight, and others have; weigh all sources or none")
    return value


Sources = Annotated[str | Source | list[str | Source], AfterValidator(_weighed)]


def sources_of(value: str | Source | list[str | Source] | None) -> tuple[Source, ...]:
    """What a key of `data` names, in one form; nothing where it names nothing."""
    listed = value if isinstance(value, list) else [value] if value is not None else []
    return tuple(Source(source=each) if isinstance(each, str) else each for each in listed)


def title_of(sources: Iterable[Source]) -> str:
    """What they are called together."""
    return BETWEEN.join(map(str, sources))

"""Held-out comparisons and what else is known of each: what it is about, and what annotators said of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorarlhf.data.examples import limit_of, stream_preferences
from lorarlhf.data.rows import ColumnsWanted, Preference
from lorarlhf.data.subset import rank
from lorarlhf.data.tokenize import Tokenized, tokenize_preferences
from lorarlhf.data.tokenized import for_the_model, say_what_was_taken
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig

Votes = tuple[tuple[str, int], ...]  # of one comparison, see `Preference.votes`
GROUPS = frozenset({"subset", "source", "category"})  # columns by which data sets say what a row is about


@dataclass(frozen=True)
class HeldOut:
    """Rows that a reward model is tested on.

    Attributes:
        examples: N of them; of comparisons, those that have a winner.
        groups: by each column that groups them (`GROUPS`) the group [N] of each, "" for none.
        votes: [N] what annotators said of each.
        ties: comparisons that most annotators, or as many as not, call a tie, and `tie_votes` what they said: of no
            use to test a reward model on, but to compare annotators on. None if there are none.
    """

    examples: Tokenized
    groups: dict[str, list[str]] = field(default_factory=dict)
    votes: list[Votes] = field(default_factory=list)
    ties: Dataset | None = None
    tie_votes: list[Votes] = field(default_factory=list)


def held_out_preferences(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """The test part of `data.preferences`, the same rows as `preference_examples` has."""
    tied: list[Preference] = []
    stream = stream_preferences(config, "test")
    stream.on_tie = lambda row: tied.append(row) if row.all_votes() else None
    groups: list[dict[str, str]] = []
    votes: list[Votes] = []
    ranks: list[int] = []
    limit = limit_of(config, "test")

    def rows() -> Iterator[Preference]:
        for row, columns in stream.with_columns(ColumnsWanted(welcome=GROUPS)):
            groups.append({name: str(value) for name, value in columns.items() if value is not None})
            votes.append(row.all_votes())
            if limit is not None:
                ranks.append(rank(row))
            yield row

    read = for_the_model(rows(), stream.source, config, tokenizer, "test")
    examples = tokenize_preferences(
        read, tokenizer, config.max_length, limit, numbered=True, special_tokens=config.special_tokens
    )
    say_what_was_taken(examples, stream)
    numbers = list(examples.dataset["row"])
    names = sorted({name for number in numbers for name in groups[number]})
    if limit is not None and len(numbers) == limit:  # of ties the same part
        highest = max(ranks[number] for number in numbers)
        tied = [row for row in tied if rank(row) <= highest]
    ties, tie_votes = _ties(tied, config, tokenizer)
    return HeldOut(
        examples,
        {name: [groups[number].get(name, "") for number in numbers] for name in names},
        [votes[number] for number in numbers],
        ties,
        tie_votes,
    )


def _ties(
    tied: list[Preference], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset | None, list[Votes]]:
    read = for_the_model(tied, "", config, tokenizer, "test")
    try:
        dataset = tokenize_preferences(
            read, tokenizer, config.max_length, numbered=True, special_tokens=config.special_tokens
        ).dataset
    except UserError:  # every one of them is too long
        return None, []
    return (dataset, [tied[number].all_votes() for number in dataset["row"]]) if len(dataset) else (None, [])

"""What a stage trains or is tested on, as token ids; and what the user should hear of how its rows were read."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorarlhf.data.examples import (
    LIMITS,
    Loaded,
    Split,
    Stream,
    limit_of,
    load_prompt_rows,
    stream_demonstrations,
    stream_preferences,
    stream_scored,
)
from lorarlhf.data.progress import with_progress
from lorarlhf.data.rows import NO_COLUMNS, AnyExample, PromptRow, in_turns, is_text
from lorarlhf.data.special_tokens import SpecialTokens, special_text
from lorarlhf.data.tokenize import (
    PromptExample,
    Tokenized,
    tokenize_demonstrations,
    tokenize_preferences,
    tokenize_prompts,
    tokenize_scored,
)
from lorarlhf.data.tokenizer import has_chat_template, wraps_text
from lorarlhf.recipe.sections import DataConfig

logger = logging.getLogger(__name__)


def sft_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
    """Demonstrations."""
    return _examples(stream_demonstrations(config, split), tokenize_demonstrations, tokenizer)


def preference_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
    """Comparisons."""
    return _examples(stream_preferences(config, split), tokenize_preferences, tokenizer)


def scored_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
    """Ratings."""
    return _examples(stream_scored(config, split), tokenize_scored, tokenizer)


def prompt_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> list[PromptExample]:
    """Different prompts, none of them too long, and no more than are wanted."""
    return read_by_model(load_prompt_rows(config, split, NO_COLUMNS), config, tokenizer, split)


def read_by_model(
    prompts: Loaded[PromptRow], config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split
) -> list[PromptExample]:
    """Prompts that were loaded before the model was, none of them too long, and no more than are wanted."""
    read = for_the_model(prompts.rows, prompts.source, config, tokenizer, split)
    rows = with_progress(read, f"{prompts.source}: tokenised", total=len(prompts.rows))
    examples, dropped = tokenize_prompts(
        rows, tokenizer, config.max_prompt_length, limit_of(config, split), config.special_tokens
    )
    limit = f"data.max_prompt_length {config.max_prompt_length}"
    _say_taken(len(examples), dropped, len(prompts.rows), limit, prompts.source, config, split)
    return examples


def _examples(
    stream: Stream[AnyExample],
    tokenize: Callable[..., Tokenized],
    tokenizer: PreTrainedTokenizerBase,
) -> Tokenized:
    config = stream.config
    read = for_the_model(stream, stream.source, config, tokenizer, stream.split)
    limit = limit_of(config, stream.split)
    tokenized = tokenize(read, tokenizer, config.max_length, limit, special_tokens=config.special_tokens)
    say_what_was_taken(tokenized, stream)
    return tokenized


def say_what_was_taken(tokenized: Tokenized, stream: Stream[Any]) -> None:
    """How many rows were left out for their length, or how many of how many were wanted."""
    limit, config = f"data.max_length {stream.config.max_length}", stream.config
    taken, dropped, rows = len(tokenized.dataset), tokenized.dropped, tokenized.rows
    _say_taken(taken, dropped, rows, limit, stream.source, config, stream.split)


def for_the_model(
    rows: Iterable[AnyExample], source: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split
) -> Iterator[AnyExample]:
    """Rows as this model is to read them: text as turns of a conversation, or as it is."""
    wraps = wraps_text(config, tokenizer)
    silent = split == "test"  # of rows to train on it is said; the others are often of the same source
    spelling, example = 0, ""
    for row in rows:
        if is_text(row) and not silent:
            silent = True
            _say_how_text_is_read(source, wraps, has_chat_template(tokenizer))
        if found := special_text(tokenizer, row):
            spelling, example = spelling + 1, example or found
        yield in_turns(row) if wraps else row
    if spelling:
        _say_how_special_text_is_read(source, spelling, example, config.special_tokens)


@functools.cache
def _say_how_text_is_read(source: str, wraps: bool, is_chat_model: bool) -> None:
    """Once a process: the stages of a recipe read the same data."""
    if wraps:
        logger.warning(
            "%s: plain text is put into the chat template, a prompt as the user's turn and what follows as the "
            "assistant's (data.wrap_text: never leaves it as it is)",
            source,
        )
    elif is_chat_model:
        logger.warning(
            "%s: plain text goes to a chat model as it is (data.wrap_text: auto puts it into the chat template)",
            source,
        )


def _say_how_special_text_is_read(source: str, rows: int, example: str, read: SpecialTokens) -> None:
    how = "as text (data.special_tokens: allow makes it the token)"
    if read == "allow":
        how = "as the token, which may end a turn or begin another's (data.special_tokens: escape makes it text)"
    logger.warning("%s: rows that spell a special token, such as %s: %d; it is read %s", source, example, rows, how)


def _say_taken(taken: int, dropped: int, rows: int, limit: str, source: str, config: DataConfig, split: Split) -> None:
    if taken + dropped < rows:
        long = f"; {dropped} that were looked at are over {limit} tokens" if dropped else ""
        key = LIMITS[split]
        logger.warning(
            "%s: taken: %d of %d rows to %s on, at random (data.%s)%s", source, taken, rows, split, key, long
        )
    elif dropped:
        logger.warning("%s: left out: %d of %d rows to %s on, over %s tokens", source, dropped, rows, split, limit)
    elif rows:
        logger.info("%s: %s rows to %s on", source, f"{rows:,}", split)

"""Canonical rows in, token ids out.

A response is always the tokens of its own text and the one that ends a turn, set behind the ids of the prompt: the
reward model and SFT see exactly the sequences that PPO makes (prompt, sampled tokens, end), never what else a template
sets around an answer.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorarlhf.data.rendering import render
from lorarlhf.data.rows import Completion, Demonstration, Preference, Prompt, PromptRow, Scored
from lorarlhf.data.special_tokens import SpecialTokens, escaped
from lorarlhf.data.subset import first_by_rank, rank
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.errors import UserError

T = TypeVar("T")
U = TypeVar("U")
Encoded = tuple[int, dict[str, Any]]  # tokens of the longest side, and the columns

_IDS = pa.list_(pa.int32())
_CHUNK = 1000


@dataclass(frozen=True)
class Tokenized:
    """A data set of token ids.

    Attributes:
        rows: how many there were to take it from.
        dropped: how many of them were left out for being too long; where only some rows were wanted, not all of the
            others were looked at.
    """

    dataset: Dataset
    rows: int
    dropped: int


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A prompt as it was written and as the model reads it, with columns of its row for reward functions."""

    prompt: Prompt
    ids: list[int]
    columns: Mapping[str, Any] = field(default_factory=dict)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, special_tokens: SpecialTokens = "escape"
) -> list[int]:
    """Ids of a prompt up to where the response begins: a conversation through the chat template, text as it is.

    Args:
        special_tokens: whether text that spells one may be read as one (`lorarlhf.data.special_tokens`).
    """
    if special_tokens == "escape":
        prompt = escaped(tokenizer, prompt)
    if isinstance(prompt, str):
        ids = _ids(tokenizer, prompt, add_special_tokens=True)
        # Some tokenizers close every text with eos; a prompt goes on.
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
            ids.pop()
        return ids
    return _ids(tokenizer, render(tokenizer, prompt, add_generation_prompt=True), add_special_tokens=False)


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    completion: Completion,
    end_id: int,
    special_tokens: SpecialTokens = "escape",
) -> tuple[list[int], list[int]]:
    """Return `(prompt_ids, response_ids)`; messages before the last join the prompt.

    Args:
        end_id: what the response ends with, `end_of_turn` of the tokenizer.
        special_tokens: as of `encode_prompt`.
    """
    if isinstance(completion, str):
        response = completion
    else:
        response = completion[-1]["content"]
        prompt = [*prompt, *completion[:-1]] if isinstance(prompt, list) else prompt
    if special_tokens == "escape":
        response = escaped(tokenizer, response)
    response_ids = _ids(tokenizer, response, add_special_tokens=False)
    return encode_prompt(tokenizer, prompt, special_tokens), [*response_ids, end_id]


def tokenize_preferences(
    rows: Iterable[Preference],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    limit: int | None = None,
    numbered: bool = False,
    special_tokens: SpecialTokens = "escape",
) -> Tokenized:
    """Columns `chosen_ids`, `rejected_ids` and, if every row has one, `margin`: what TRL's RewardTrainer takes.

    And `tie` where some row is one; a tie needs no margin, and gets 0. Pairs with a side over `max_length` tokens are
    dropped whole: `numbered` adds a column `row` that says which of `rows` each of the others is.

    Args:
        limit: take so many of the rows that are short enough, at random (`lorarlhf.data.subset`); None takes all.
    """
    end_id = end_of_turn(tokenizer)

    def encode(numbered_row: tuple[int, Preference]) -> Encoded:
        number, row = numbered_row
        chosen_prompt, chosen = encode_completion(tokenizer, row.prompt, row.chosen, end_id, special_tokens)
        rejected_prompt, rejected = encode_completion(tokenizer, row.prompt, row.rejected, end_id, special_tokens)
        pair = {"chosen_ids": chosen_prompt + chosen, "rejected_ids": rejected_prompt + rejected}
        margin = 0.0 if row.tie else row.margin
        return max(map(len, pair.values())), pair | {"margin": margin, "tie": row.tie, "row": number}

    columns = {"margin": pa.float32(), "tie": pa.bool_(), "row": pa.int32()}
    fields = [("chosen_ids", _IDS), ("rejected_ids", _IDS), *columns.items()]
    tokenized = _table(enumerate(rows), lambda item: rank(item[1]), encode, fields, max_length, limit)
    margins, ties = (tokenized.dataset.data.column(name) for name in ("margin", "tie"))
    tied = pc.sum(ties).as_py() or 0
    unused = ["margin"] * (margins.null_count > 0 or tied == len(ties)) + ["tie"] * (not tied)
    unused += ["row"] * (not numbered)
    return replace(tokenized, dataset=tokenized.dataset.remove_columns(unused))


def tokenize_demonstrations(
    rows: Iterable[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    limit: int | None = None,
    special_tokens: SpecialTokens = "escape",
) -> Tokenized:
    """Columns `input_ids` and `labels` (-100 on the prompt): what TRL's SFTTrainer takes and leaves as it is."""
    end_id = end_of_turn(tokenizer)

    def encode(row: Demonstration) -> Encoded:
        prompt, response = encode_completion(tokenizer, row.prompt, row.completion, end_id, special_tokens)
        labels = [-100] * len(prompt) + response
        return len(labels), {"input_ids": prompt + response, "labels": labels}

    return _table(rows, rank, encode, [("input_ids", _IDS), ("labels", _IDS)], max_length, limit)


def tokenize_scored(
    rows: Iterable[Scored],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    limit: int | None = None,
    special_tokens: SpecialTokens = "escape",
) -> Tokenized:
    """Columns `input_ids` and `score`."""
    end_id = end_of_turn(tokenizer)

    def encode(row: Scored) -> Encoded:
        prompt, response = encode_completion(tokenizer, row.prompt, row.completion, end_id, special_tokens)
        return len(prompt) + len(response), {"input_ids": prompt + response, "score": row.score}

    return _table(rows, rank, encode, [("input_ids", _IDS), ("score", pa.float32())], max_length, limit)


def tokenize_prompts(
    rows: Iterable[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    limit: int | None = None,
    special_tokens: SpecialTokens = "escape",
) -> tuple[list[PromptExample], int]:
    """Prompts of at most `max_prompt_length` tokens, and how many were longer and dropped."""

    def encode(row: PromptRow) -> tuple[int, PromptExample]:
        ids = encode_prompt(tokenizer, row.prompt, special_tokens)
        return len(ids), PromptExample(row.prompt, ids, row.columns)

    fitting = ShortEnough(encode, max_prompt_length)
    kept = list(first_by_rank(rows, limit, rank, fitting))
    if fitting.dropped and not kept:
        raise too_long("data.max_prompt_length", max_prompt_length, int(fitting.shortest))
    return kept, fitting.dropped


class ShortEnough(Generic[T, U]):
    """Encodes rows, each into its length and what becomes of it, and makes None of those that are too long."""

    def __init__(self, encode: Callable[[T], tuple[int, U]], max_length: int) -> None:
        self.encode = encode
        self.max_length = max_length
        self.dropped = 0
        self.shortest = math.inf

    def __call__(self, row: T) -> U | None:
        length, encoded = self.encode(row)
        self.shortest = min(self.shortest, length)
        if length <= self.max_length:
            return encoded
        self.dropped += 1
        return None


def _table(
    rows: Iterable[T],
    rank: Callable[[T], int],
    encode: Callable[[T], Encoded],
    fields: list[tuple[str, Any]],
    max_length: int,
    limit: int | None,
) -> Tokenized:
    """Write rows to a temporary file as they come, and map it: memory does not grow with their number.

    With a limit, the rows that are taken are in memory before they are written, at 4 bytes a token.
    """
    schema = pa.schema(fields)
    fitting = ShortEnough(encode, max_length)
    count = 0

    def counted() -> Iterator[T]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    def compact(row: T) -> dict[str, Any] | None:
        columns = fitting(row)
        return columns and {
            name: np.asarray(value, np.int32) if isinstance(value, list) else value for name, value in columns.items()
        }

    taken = first_by_rank(counted(), limit, rank, fitting if limit is None else compact)
    # The file goes when its name does; what is mapped stays (Windows keeps the file, and leaves it behind).
    with tempfile.TemporaryDirectory(prefix="lorarlhf-", ignore_cleanup_errors=True) as folder:
        path = str(Path(folder, "rows.arrow"))
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for chunk in _chunks(taken):
                writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
        dataset = Dataset.from_file(path)
    if count and not len(dataset):
        raise too_long("data.max_length", max_length, int(fitting.shortest))
    return Tokenized(dataset, count, fitting.dropped)


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def too_long(key: str, limit: int, shortest: int) -> UserError:
    """What is raised where no row is short enough."""
    return UserError(f"every row is longer than {key} {limit} tokens; the shortest has {shortest}: raise the limit")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> list[int]:
    # Not verbose: what is too long is dropped and counted here, so transformers need not warn of it.
    return list(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

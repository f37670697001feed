"""What a benchmark of right and wrong answers asks of a reward model, as token ids, each sequence once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from lorarlhf.data.examples import Split, limit_of, stream_choices
from lorarlhf.data.rows import Choice, PromptRow
from lorarlhf.data.subset import first_by_rank, rank
from lorarlhf.data.tokenize import ShortEnough, encode_completion, too_long
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.recipe.sections import DataConfig


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """Token ids of the right completions and of the wrong ones, each behind the prompt."""

    right: list[list[int]]
    wrong: list[list[int]]
    subset: str
    name: str


@dataclass(frozen=True)
class Choices:
    """What is asked, the source it comes from, how many prompts that has, and how many of them were too long."""

    examples: list[ChoiceExample]
    source: str
    rows: int
    dropped: int


def choice_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Choices | None:
    """The choices of a split; None where `data.preferences` holds something else.

    A prompt of which one completion is too long is left out whole: what is left of it would be an easier question.
    """
    stream = stream_choices(config, split)
    if not stream.is_of_its_kind():
        return None
    end_id = end_of_turn(tokenizer)

    def encode(row: Choice) -> tuple[int, ChoiceExample]:
        right, wrong = (
            [
                [*chain(*encode_completion(tokenizer, row.prompt, answer, end_id, config.special_tokens))]
                for answer in answers
            ]
            for answers in (row.right, row.wrong)
        )
        return max(map(len, right + wrong)), ChoiceExample(right, wrong, row.subset, row.name)

    rows = list(stream)
    fitting = ShortEnough(encode, config.max_length)
    limit = limit_of(config, split)
    examples = list(first_by_rank(rows, limit, lambda row: rank(PromptRow(row.prompt)), fitting))
    if rows and not examples:
        raise too_long("data.max_length", config.max_length, int(fitting.shortest))
    return Choices(examples, stream.source, len(rows), fitting.dropped)

"""What a stage trains or is tested on, as token ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lorarlhf.data.examples import Split, load_prompts, stream_demonstrations, stream_preferences, stream_scored
from lorarlhf.data.tokenize import (
    PromptExample,
    Tokenized,
    tokenize_demonstrations,
    tokenize_preferences,
    tokenize_prompts,
    tokenize_scored,
)
from lorarlhf.recipe.sections import DataConfig


def sft_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
    """Demonstrations."""
    return tokenize_demonstrations(stream_demonstrations(config, split), tokenizer, config.max_length)


def preference_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
    """Comparisons."""
    return tokenize_preferences(stream_preferences(config, split), tokenizer, config.max_length)


def scored_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
    """Ratings."""
    return tokenize_scored(stream_scored(config, split), tokenizer, config.max_length)


def prompt_examples(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> list[PromptExample]:
    """Different prompts, none of them too long."""
    return tokenize_prompts(load_prompts(config, split).rows, tokenizer, config.max_prompt_length)[0]

"""Text that spells a special token, such as `<|im_end|>`: read as the characters that it is, not as the token.

Tokenizers find special tokens in raw text. A prompt that spells the end of a turn would end it, and go on as somebody
else. A space behind its first character keeps such text what it looks like, in every tokenizer, and leaves the tokens
of all other text as they were. `data.special_tokens: allow` is for data that holds tokens on purpose.
"""

from __future__ import annotations

import re
from typing import Literal, overload
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from lorarlhf.data.rows import Completion, Demonstration, Message, Preference, Prompt, PromptRow, Scored

SpecialTokens = Literal["escape", "allow"]

_patterns: WeakKeyDictionary[PreTrainedTokenizerBase, re.Pattern[str] | None] = WeakKeyDictionary()


@overload
def escaped(tokenizer: PreTrainedTokenizerBase, said: str) -> str: ...


@overload
def escaped(tokenizer: PreTrainedTokenizerBase, said: list[Message]) -> list[Message]: ...


def escaped(tokenizer: PreTrainedTokenizerBase, said: str | list[Message]) -> str | list[Message]:
    """Text, or messages, none of which spells a special token of a tokenizer that `prepare_tokenizer` has seen."""
    pattern = _pattern(tokenizer)
    if pattern is None:
        return said
    if isinstance(said, str):
        return _broken(pattern, said)
    return [{**message, "content": _broken(pattern, message["content"])} for message in said]


def special_text(
    tokenizer: PreTrainedTokenizerBase, row: Preference | Demonstration | Scored | PromptRow
) -> str | None:
    """The first special token that a row's prompt or a completion spells; None where none does."""
    pattern = _pattern(tokenizer)
    sides: list[Prompt | Completion] = [row.prompt]
    if isinstance(row, Preference):
        sides += [row.chosen, row.rejected]
    elif not isinstance(row, PromptRow):
        sides.append(row.completion)
    texts = [text for side in sides for text in ([side] if isinstance(side, str) else [m["content"] for m in side])]
    found = (pattern and pattern.search(text) for text in texts)
    return next((match[0] for match in found if match), None)


def _broken(pattern: re.Pattern[str], text: str) -> str:
    while pattern.search(text):  # again: what is left of two that overlap may be a third
        text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What matches the tokenizer's special tokens, the longest first; None where it has none that text could spell."""
    if tokenizer not in _patterns:
        spelt = {token.content: token.normalized for token in tokenizer.added_tokens_decoder.values() if token.special}
        # One character cannot be broken; and a word is special only as the pad token of a vocabulary without another.
        spelt = {text: folded for text, folded in spelt.items() if len(text.strip()) > 1 and not text.isalnum()}
        longest_first = sorted(spelt, key=len, reverse=True)
        # Those that are looked for in normalised text may be spelt with other capitals.
        parts = [f"(?i:{re.escape(text)})" if spelt[text] else re.escape(text) for text in longest_first]
        _patterns[tokenizer] = re.compile("|".join(parts)) if parts else None
    return _patterns[tokenizer]

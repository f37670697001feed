"""What a tokenizer needs before it is used here: a chat template, a token that ends a response, a pad token.

A response ends with the token with which the chat template ends a turn of the assistant's. That is often the
tokenizer's eos, and often not: Gemma's eos is `<eos>`, and its turns end with `<end_of_turn>`. What a reward model was
taught to read its score at, what a fine-tuned policy was taught to stop with and what a rollout stops with must be one
token; held-out accuracy does not show it where they are two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorarlhf.data.chat_templates import FIXED_DATE, PLAIN, PLAIN_WITH_BOS, default_line, with_defaults, with_fixed_date
from lorarlhf.data.rendering import render
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig
from lorarlhf.recipe.shipped import resolve_path

PAD = "<|pad|>"
THINKING = "enable_thinking"  # Qwen3's name for the switch, which SmolLM3 and others have taken up
_ANSWER = "lorarlhf"  # a word that no template has of its own
MOST_TEMPLATE = 2**20  # bytes
_MESSAGES = re.compile(r"\{[%{][^{}]*\bmessages\b")  # inside a tag or an expression


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, config: DataConfig) -> list[str]:
    """Set pad token and chat template in place; return a line for each choice that the user should hear of.

    Args:
        embedding_rows: the height of the model's embedding, which is never resized.
        config: names another chat template, and values for what it may vary.

    Raises:
        UserError: there is no eos token, no template at the path `data.chat_template`, or one that does not show what
            is said.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no eos token, so no response could end; "
            "set eos_token in its tokenizer_config.json"
        )
    notes = _set_chat_template(tokenizer, config.chat_template)
    notes += _settle_chat_template(tokenizer, config.chat_template_kwargs)
    if end_of_turn(tokenizer) != tokenizer.eos_token_id:
        end = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
        notes.append(f"responses end with {end}, as turns of the chat template do, not with eos {tokenizer.eos_token}")
    _check_shows_messages(tokenizer)
    return notes + _set_pad_token(tokenizer, embedding_rows)


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there is a template that the model was made for, or that the recipe names: not the plain one."""
    return bool(tokenizer.chat_template) and PLAIN not in tokenizer.get_chat_template()


def may_think(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template leaves it to a variable if the model thinks before it answers."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return THINKING in template and default_line(THINKING) not in template


def wraps_text(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether plain text is to become turns of a conversation, which is all that a chat model has been tuned on."""
    return config.wrap_text == "always" or (config.wrap_text == "auto" and has_chat_template(tokenizer))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a response: the first special token that the chat template sets behind an answer.

    It is eos where the template sets none there, or where there is no template.
    """
    eos: int = tokenizer.eos_token_id
    if not tokenizer.chat_template:
        return eos
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    _, answer, ending = render(tokenizer, turns, add_generation_prompt=False).rpartition(_ANSWER)
    if not answer:
        return eos
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} | {eos}
    ids: list[int] = tokenizer(ending, add_special_tokens=False)["input_ids"]
    return next((index for index in ids if index in special), eos)


def _set_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> list[str]:
    if path is not None:
        tokenizer.chat_template = _read_template(path)
        return []
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise UserError(
            f"the tokenizer has the chat templates {', '.join(sorted(tokenizer.chat_template))} and no default; "
            "give one as data.chat_template"
        )
    if tokenizer.chat_template:
        return []
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = PLAIN_WITH_BOS if adds_bos else PLAIN
    return [
        "the tokenizer has no chat template: conversations are written as plain User: and Assistant: turns "
        "(data.chat_template gives another)"
    ]


def _read_template(path: str) -> str:
    file = Path(resolve_path(path)).expanduser()
    try:
        if file.stat().st_size > MOST_TEMPLATE or not file.is_file():  # a device, or something else altogether
            raise UserError(f"data.chat_template {path}: no file of at most {MOST_TEMPLATE:,} bytes; give a Jinja file")
        text = file.read_text(encoding="utf-8-sig")  # what Windows may set in front is none of it
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that cannot be
        raise UserError(f"data.chat_template {path}: cannot be read ({error}); give a Jinja file") from error
    # The template goes into runs and exports, and so would any other text that a recipe names.
    if not _MESSAGES.search(text):
        raise UserError(f"data.chat_template {path}: nothing in it takes `messages`; give a chat template")
    return text


def _check_shows_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the template leaves out what a user says."""
    turns = [{"role": "user", "content": _ANSWER}]
    if _ANSWER not in render(tokenizer, turns, add_generation_prompt=True):
        raise UserError(
            "the chat template leaves out what the user says; give another as data.chat_template, a Jinja file that "
            "writes `messages`"
        )


def _settle_chat_template(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]) -> list[str]:
    """Write what a prompt is not to depend on into the template: the day, and the variables that the recipe sets."""
    original = tokenizer.get_chat_template()
    dated = with_fixed_date(original)
    notes = []
    if dated != original:
        notes.append(f"the chat template prints today's date: it prints {FIXED_DATE:%d %b %Y} on every day here")
    if "strftime_now(" in dated:
        notes.append(
            "the chat template prints today's date in a way that is not understood here, so prompts differ from day to "
            "day; give another as data.chat_template"
        )
    if may_think(tokenizer) and THINKING not in values:
        notes.append(
            f"the chat template can have the model think before it answers ({THINKING}), which takes up "
            f"ppo.response_length; data.chat_template_kwargs: {{{THINKING}: false}} has it answer at once, true think"
        )
    template = with_defaults(dated, values)
    # A tokenizer may have templates for other purposes beside the one in use.
    others = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
    tokenizer.chat_template = template if others is None else {**others, "default": template}
    return notes


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> list[str]:
    """Give padding a token that ends no response.

    This package masks by lengths, but a saved reward model is scored by `AutoModelForSequenceClassification` at the
    last token that is not pad, and that token is the one that ends a response.
    """
    pad = tokenizer.pad_token_id
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    if pad is not None and pad not in ends and pad < embedding_rows:
        return []
    taken = ends | {tokenizer.bos_token_id}
    token = _spare_special_token(tokenizer, embedding_rows, taken)
    if token is not None:
        tokenizer.pad_token = token
        return []
    if max(tokenizer.get_vocab().values()) + 1 < embedding_rows:
        tokenizer.add_special_tokens({"pad_token": PAD})
        return []
    tokenizer.pad_token = _rarest_token(tokenizer, embedding_rows, taken)
    return [f"the vocabulary has no token to spare for padding: {tokenizer.pad_token!r}, one of its rarest, is used"]


def _spare_special_token(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, taken: set[int | None]) -> str | None:
    """A special token that no text holds: one made for padding, else unk, else one that was reserved."""
    special = {
        index: token.content
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and index < embedding_rows and index not in taken
    }
    unk = tokenizer.unk_token_id
    wanted = [token for token in special.values() if "pad" in token.lower()]
    if unk is not None and unk not in taken and unk < embedding_rows:
        wanted.append(str(tokenizer.unk_token))
    wanted += [token for token in special.values() if "reserved" in token.lower() or "unused" in token.lower()]
    return wanted[0] if wanted else None


def _rarest_token(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, taken: set[int | None]) -> str:
    """The last entry of the vocabulary, as merges are learnt from the most frequent to the least.

    Being pad makes it special, and special tokens are found in raw text by their spelling: so the spelling must be one
    that text does not have, as byte-level BPE spells a leading space or a byte beyond ASCII.
    """
    taken = taken | {tokenizer.unk_token_id}
    by_index = sorted(((index, token) for token, index in tokenizer.get_vocab().items()), reverse=True)
    candidates = [token for index, token in by_index if index not in taken and index < embedding_rows]
    unspellable = (token for token in candidates if tokenizer.convert_tokens_to_string([token]) != token)
    return next(unspellable, candidates[0])

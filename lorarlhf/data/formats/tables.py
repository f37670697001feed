"""The formats of each kind of data, in the order in which they are tried."""

from __future__ import annotations

import json
from collections.abc import Iterable

from lorarlhf.data.formats.choices import CHOSEN_AND_REJECTED
from lorarlhf.data.formats.format import Format, Table, single
from lorarlhf.data.formats.judged import JUDGED
from lorarlhf.data.formats.lists import RATED, SCORED_COMPLETIONS
from lorarlhf.data.formats.pairs import GENERAL, SPECIAL, instruction, sharegpt
from lorarlhf.data.formats.platforms import PLATFORMS
from lorarlhf.data.formats.trees import TREES
from lorarlhf.data.formats.values import Row, answered, is_list, is_text, messages, number, text
from lorarlhf.data.rows import BadRow, Completion, Demonstration, Message, Preference, Prompt, Scored, prompt_text

_PAIRS = (*PLATFORMS, *JUDGED, *RATED, TREES, *CHOSEN_AND_REJECTED, *SPECIAL, *GENERAL)


def _best(parts: Iterable[Preference | BadRow]) -> Iterable[Demonstration | BadRow]:
    """Of a row's pairs the chosen sides, once each and only those that were never rejected."""
    pairs = list(parts)
    decided = [pair for pair in pairs if isinstance(pair, Preference) and not pair.tie]
    beaten = {_key(pair.prompt, pair.rejected) for pair in decided}
    unbeaten = {_key(pair.prompt, pair.chosen): Demonstration(pair.prompt, pair.chosen) for pair in decided}
    return [
        *(pair for pair in pairs if isinstance(pair, BadRow)),
        *(best for key, best in unbeaten.items() if key not in beaten),
    ]


def _key(prompt: Prompt, completion: Completion) -> str:
    return json.dumps([prompt, completion])


def _prompts(parts: Iterable[Preference | BadRow]) -> Iterable[Prompt | BadRow]:
    """The different prompts of a row's pairs."""
    pairs = list(parts)
    prompts = {prompt_text(pair.prompt): pair.prompt for pair in pairs if isinstance(pair, Preference)}
    return [*(pair for pair in pairs if isinstance(pair, BadRow)), *prompts.values()]


def _prompts_of_demonstrations(parts: Iterable[Demonstration | BadRow]) -> Iterable[Prompt | BadRow]:
    return [part if isinstance(part, BadRow) else part.prompt for part in parts]


def _demonstration(prompt: list[Message], completion: list[Message]) -> Demonstration:
    turns = prompt + completion
    if turns[-1]["role"] != "assistant":
        raise BadRow("the last turn is not the assistant's")
    if len(turns) < 2 or turns[-2]["role"] in ("assistant", "system"):
        raise BadRow("the last turn answers no turn of the user's")
    return Demonstration(turns[:-1], turns[-1:])


def _completed(column: str) -> list[Format[Demonstration]]:
    """A prompt and one completion, as text and as conversations."""
    needs = ("prompt", column)
    return [
        single(
            "text",
            needs,
            is_text(*needs),
            lambda row: Demonstration(text(row, "prompt"), text(row, column)),
        ),
        single(
            "conversations",
            needs,
            is_list(*needs),
            lambda row: _demonstration(messages(row, "prompt"), messages(row, column)),
        ),
    ]


def _scored(form: Format[Demonstration]) -> Format[Scored]:
    def convert(row: Row) -> list[Scored | BadRow]:
        return [
            done if isinstance(done, BadRow) else Scored(done.prompt, done.completion, number(row, "score"))
            for done in form.convert(row)
        ]

    return Format(f"scored {form.name}", (*form.needs, "score"), form.fits, convert)


def _text_prompt(row: Row) -> Prompt:
    return text(row, "prompt")


def _instruction_prompt(row: Row) -> Prompt:
    return instruction(row)


def _asked(row: Row) -> Prompt:
    prompt = messages(row, "prompt")
    if prompt[-1]["role"] in ("assistant", "system"):
        raise BadRow("the prompt's last turn is not the user's")
    return prompt


_WHOLE: tuple[Format[Demonstration], ...] = (
    single("messages", ("messages",), is_list("messages"), lambda row: _demonstration(messages(row, "messages"), [])),
    single(
        "LLaMA-Factory style",
        ("conversations",),
        is_list("conversations"),
        lambda row: _demonstration(sharegpt(row, "conversations"), []),
    ),
)

PREFERENCES: Table[Preference] = Table("comparisons", ("prompt", "chosen", "rejected"), _PAIRS)

SCORED: Table[Scored] = Table(
    "scored completions",
    ("prompt", "completion", "score"),
    (SCORED_COMPLETIONS, *(_scored(form) for column in ("completion", "response") for form in _completed(column))),
)

DEMONSTRATIONS: Table[Demonstration] = Table(
    "demonstrations",
    ("prompt", "completion"),
    (
        *(form.then(_best) for form in _PAIRS),
        *_completed("completion"),
        *_WHOLE,
        single(
            "Alpaca style",
            ("instruction", "output"),
            is_text("instruction", "output"),
            lambda row: Demonstration(instruction(row), answered(row, "output")),
        ),
    ),
)

_PROMPTS: list[Format[Prompt]] = [form.then(_prompts) for form in _PAIRS]
_PROMPTS += [form.then(_prompts_of_demonstrations) for form in _WHOLE]

PROMPTS: Table[Prompt] = Table(
    "prompts",
    ("prompt",),
    (
        *_PROMPTS,
        single("text prompts", ("prompt",), is_text("prompt"), _text_prompt),
        single("conversations to answer", ("prompt",), is_list("prompt"), _asked),
        single("Alpaca style", ("instruction",), is_text("instruction"), _instruction_prompt),
    ),
)

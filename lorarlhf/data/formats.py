"""Recognise the form of a data set from its columns, and bring its rows into the form of `rows.py`.

A format is one entry of a table: the columns it needs, whether a row's values fit it, and a small function that
converts a row. Tables are tried in order, so a special format stands before the general one that would also fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lorarlhf.data.rows import BadRow, Demonstration, Message, Preference, Prompt, Scored

Row = dict[str, Any]
T = TypeVar("T")
U = TypeVar("U")

ROLES = ("system", "user", "assistant", "tool")
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\A\s*(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class UnknownColumns(BadRow):
    """No format of the table has these columns."""


@dataclass(frozen=True)
class Format(Generic[T]):
    """One way of writing a `T`. `convert` raises BadRow with the reason why a row is of no use."""

    name: str
    needs: tuple[str, ...]
    fits: Callable[[Row], bool]
    convert: Callable[[Row], T]

    def then(self, convert: Callable[[T], U]) -> Format[U]:
        """The same format, read for another purpose."""
        return Format(self.name, self.needs, self.fits, lambda row: convert(self.convert(row)))


def recognise(row: Row, formats: Iterable[Format[T]]) -> Format[T]:
    """The first format that a row fits.

    Raises UnknownColumns if none has its columns, BadRow if the columns are right but the values are not: then a later
    row may tell.
    """
    formats = list(formats)
    known = [form for form in formats if all(column in row for column in form.needs)]
    if not known:
        raise UnknownColumns(
            f"columns not recognised: found {', '.join(map(str, row)) or 'none'}; accepted are "
            + "; ".join(dict.fromkeys(f"{' + '.join(form.needs)} ({form.name})" for form in formats))
        )
    for form in known:
        if form.fits(row):
            return form
    needed = dict.fromkeys(column for form in known for column in form.needs)
    raise BadRow("values do not fit: " + ", ".join(f"{column} is {_kind(row[column])}" for column in needed))


# Single values


def _kind(value: object) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "missing"
    if value == [] or (isinstance(value, str) and not value.strip()):
        return "empty"
    return kinds.get(type(value), f"a {type(value).__name__}")


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{column} is {_kind(value)}" + ("" if value is None or isinstance(value, str) else ", not text"))
    return value


def _number(row: Row, column: str) -> float:
    value = row.get(column)
    try:  # in CSV, numbers are text
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{column} is {_kind(value)}" + ("" if value is None else ", not a finite number"))
    return number


def _messages(row: Row, column: str) -> list[Message]:
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{column} is {_kind(value)}" + (", not a list of messages" if value else ""))
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRow(f"{column} has a message without role and content as text")
        if message.get("role") not in ROLES:
            raise BadRow(f"{column} has a message whose role is not one of {', '.join(ROLES)}")
        if not message["content"].strip():
            raise BadRow(f"{column} has an empty message")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _margin(row: Row) -> float | None:
    """How much better, if the data says so: its margin, or the difference of two scores."""
    if row.get("margin") not in (None, ""):
        return _number(row, "margin")
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        return _number(row, "score_chosen") - _number(row, "score_rejected")
    return None


def _is_text(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row[column], str) and row[column].strip() for column in columns)


def _is_list(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row[column], list) and row[column] for column in columns)


# Preferences


def _compared(chosen: list[Message], rejected: list[Message], margin: float | None) -> Preference:
    """Split two whole conversations into the turns they share, up to the last that asks something, and the rest."""
    if chosen == rejected:
        raise BadRow("chosen and rejected are identical")
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise BadRow(f"{side} does not end with a turn of the assistant")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = min(len(chosen), len(rejected)) if shared is None else shared
    while shared and chosen[shared - 1]["role"] in ("assistant", "system"):
        shared -= 1
    if not shared:
        raise BadRow("chosen and rejected have no prompt in common")
    return Preference(chosen[:shared], chosen[shared:], rejected[shared:], margin)


def _conversations(row: Row) -> Preference:
    opening: list[Message] = []
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        opening = [{"role": "user", "content": row["prompt"]}]
    elif row.get("prompt") is not None:
        opening = _messages(row, "prompt")
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    return _compared(_continued(opening, chosen), _continued(opening, rejected), _margin(row))


def _continued(opening: list[Message], turns: list[Message]) -> list[Message]:
    """Some data sets repeat the prompt in front of each side, perhaps after a system message."""
    repeated = turns[: len(opening)] == opening or turns[1 : 1 + len(opening)] == opening
    return turns if repeated else opening + turns


def _explicit_text(row: Row) -> Preference:
    prompt, chosen, rejected = _text(row, "prompt"), _text(row, "chosen"), _text(row, "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are identical")
    return Preference(prompt, chosen, rejected, _margin(row))


def _implicit_text(row: Row) -> Preference:
    """The prompt is the common beginning, cut back to whole words so that no token straddles the border."""
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are identical")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None:
        raise BadRow("one of chosen and rejected only goes on from the other")
    while shared and not (chosen[shared].isspace() and rejected[shared].isspace()):
        shared -= 1
    while shared and chosen[shared - 1].isspace():
        shared -= 1
    if not chosen[:shared].strip():
        raise BadRow("chosen and rejected have no prompt in common")
    return Preference(chosen[:shared], chosen[shared:], rejected[shared:], _margin(row))


def _is_transcript(row: Row) -> bool:
    return any(isinstance(row[side], str) and _TRANSCRIPT.match(row[side]) for side in ("chosen", "rejected"))


def _transcript(row: Row, column: str) -> list[Message]:
    r"""Turns of an HH-RLHF transcript (Bai et al. 2022): `\n\nHuman: ...\n\nAssistant: ...`.

    A marker of the speaker who has the word already is part of the text: sampled responses imitate the format.
    """
    text = _text(row, column)
    if not _TRANSCRIPT.match(text):
        raise BadRow(f"{column} does not begin with Human: or Assistant:")
    turns: list[tuple[str, int, int]] = []  # speaker, where the marker begins, where it ends
    for marker in _TURN.finditer(text):
        if not turns or marker[1] != turns[-1][0]:
            turns.append((marker[1], marker.start(), marker.end()))
    ends = [start for _, start, _ in turns[1:]] + [len(text)]
    messages = [
        {"role": _SPEAKERS[speaker], "content": text[begin:end].strip()}
        for (speaker, _, begin), end in zip(turns, ends, strict=True)
    ]
    if not all(message["content"] for message in messages):
        raise BadRow(f"{column} has an empty turn")
    return messages


def _transcripts(row: Row) -> Preference:
    return _compared(_transcript(row, "chosen"), _transcript(row, "rejected"), _margin(row))


def _instruction(row: Row) -> list[Message]:
    """Alpaca's two columns (Taori et al. 2023) as one message of the user's."""
    content = _text(row, "instruction")
    if row.get("input") not in (None, ""):
        extra = row["input"]
        if not isinstance(extra, str):
            raise BadRow(f"input is {_kind(extra)}, not text")
        content = f"{content}\n\n{extra}" if extra.strip() else content
    return [{"role": "user", "content": content}]


def _answer(row: Row, column: str) -> list[Message]:
    return [{"role": "assistant", "content": _text(row, column)}]


def _instructed_pair(row: Row) -> Preference:
    asked = _instruction(row)
    return _compared(asked + _answer(row, "chosen"), asked + _answer(row, "rejected"), _margin(row))


PREFERENCES: list[Format[Preference]] = [
    Format("HH-RLHF transcripts", ("chosen", "rejected"), _is_transcript, _transcripts),
    Format(
        "Alpaca style pairs",
        ("instruction", "chosen", "rejected"),
        _is_text("instruction", "chosen", "rejected"),
        _instructed_pair,
    ),
    Format(
        "text pairs with a prompt",
        ("prompt", "chosen", "rejected"),
        _is_text("prompt", "chosen", "rejected"),
        _explicit_text,
    ),
    Format(
        "conversations, with or without a prompt",
        ("chosen", "rejected"),
        _is_list("chosen", "rejected"),
        _conversations,
    ),
    Format(
        "text pairs with a common beginning",
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _is_text("chosen", "rejected")(row),
        _implicit_text,
    ),
]


# Demonstrations, scores and prompts


def _demonstration(prompt: list[Message], completion: list[Message]) -> Demonstration:
    turns = prompt + completion
    if turns[-1]["role"] != "assistant":
        raise BadRow("the last turn is not the assistant's")
    if len(turns) < 2 or turns[-2]["role"] in ("assistant", "system"):
        raise BadRow("the last turn answers no turn of the user's")
    return Demonstration(turns[:-1], turns[-1:])


def _messages_demonstration(row: Row) -> Demonstration:
    return _demonstration(_messages(row, "messages"), [])


def _completed(column: str) -> list[Format[Demonstration]]:
    """A prompt and one completion, as text and as conversations."""
    needs = ("prompt", column)
    return [
        Format(
            "text",
            needs,
            _is_text(*needs),
            lambda row: Demonstration(_text(row, "prompt"), _text(row, column)),
        ),
        Format(
            "conversations",
            needs,
            _is_list(*needs),
            lambda row: _demonstration(_messages(row, "prompt"), _messages(row, column)),
        ),
    ]


def _scored(form: Format[Demonstration]) -> Format[Scored]:
    def convert(row: Row) -> Scored:
        done = form.convert(row)
        return Scored(done.prompt, done.completion, _number(row, "score"))

    return Format(f"scored {form.name}", (*form.needs, "score"), form.fits, convert)


def _asked(row: Row) -> Prompt:
    prompt = _messages(row, "prompt")
    if prompt[-1]["role"] in ("assistant", "system"):
        raise BadRow("the prompt's last turn is not the user's")
    return prompt


SCORED: list[Format[Scored]] = [_scored(form) for column in ("completion", "response") for form in _completed(column)]

DEMONSTRATIONS: list[Format[Demonstration]] = [
    *(form.then(lambda pair: Demonstration(pair.prompt, pair.chosen)) for form in PREFERENCES),
    *_completed("completion"),
    Format("messages", ("messages",), _is_list("messages"), _messages_demonstration),
    Format(
        "Alpaca style",
        ("instruction", "output"),
        _is_text("instruction", "output"),
        lambda row: Demonstration(_instruction(row), _answer(row, "output")),
    ),
]

PROMPTS: list[Format[Prompt]] = [
    *(form.then(lambda pair: pair.prompt) for form in PREFERENCES),
    Format("messages", ("messages",), _is_list("messages"), lambda row: _messages_demonstration(row).prompt),
    Format("text prompts", ("prompt",), _is_text("prompt"), lambda row: _text(row, "prompt")),
    Format("conversations to answer", ("prompt",), _is_list("prompt"), _asked),
    Format("Alpaca style", ("instruction",), _is_text("instruction"), _instruction),
]

"""Rows that name the chosen and the rejected response."""

from __future__ import annotations

import re

from lorarlhf.data.formats.format import Format, single
from lorarlhf.data.formats.values import (
    Row,
    answered,
    asked,
    is_list,
    is_text,
    kind_of,
    messages,
    number,
    records,
    text,
    true,
)
from lorarlhf.data.rows import BadRow, Message, Preference

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\A\s*(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "observation": "tool",
    "function_call": "assistant",
}
_SIDES = ("chosen", "rejected")
_SCORES = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"))


def compared(
    chosen: list[Message],
    rejected: list[Message],
    margin: float | None = None,
    tie: bool = False,
    annotators: tuple[str, ...] = (),
) -> Preference:
    """Split two whole conversations into the turns they share, up to the last that asks something, and the rest."""
    if chosen == rejected and not tie:
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
    return Preference(chosen[:shared], chosen[shared:], rejected[shared:], margin, tie, annotators)


def _pair_of_texts(row: Row, prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(prompt, chosen, rejected, _margin(row), true(row, "tie"), _annotators(row))


def _pair_of_conversations(row: Row, chosen: list[Message], rejected: list[Message]) -> Preference:
    return compared(chosen, rejected, _margin(row), true(row, "tie"), _annotators(row))


def _margin(row: Row) -> float | None:
    """How much better, if the data says so: its margin, or the difference of two scores."""
    if row.get("margin") not in (None, ""):
        return number(row, "margin")
    for better, worse in _SCORES:
        if row.get(better) not in (None, "") and row.get(worse) not in (None, ""):
            return number(row, better) - number(row, worse)
    return None


def _annotators(row: Row) -> tuple[str, ...]:
    names = row.get("annotators")
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _conversations(row: Row) -> Preference:
    opening: list[Message] = []
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        opening = asked(row, "prompt")
    elif row.get("prompt") is not None:
        opening = messages(row, "prompt")
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    return _pair_of_conversations(row, _continued(opening, chosen), _continued(opening, rejected))


def _continued(opening: list[Message], turns: list[Message]) -> list[Message]:
    """Some data sets repeat the prompt in front of each side, perhaps after a system message."""
    repeated = turns[: len(opening)] == opening or turns[1 : 1 + len(opening)] == opening
    return turns if repeated else opening + turns


def _explicit_text(row: Row) -> Preference:
    prompt, chosen, rejected = text(row, "prompt"), text(row, "chosen"), text(row, "rejected")
    if chosen == rejected and not true(row, "tie"):
        raise BadRow("chosen and rejected are identical")
    return _pair_of_texts(row, prompt, chosen, rejected)


def _implicit_text(row: Row) -> Preference:
    """The prompt is the common beginning, cut back to whole words so that no token straddles the border."""
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
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
    return _pair_of_texts(row, chosen[:shared], chosen[shared:], rejected[shared:])


# Transcripts


def _is_transcript(row: Row) -> bool:
    """Beside a prompt that is not in it, what begins like one is an answer: models write such beginnings, too."""
    prompt = row.get("prompt")
    asked = prompt.strip() if isinstance(prompt, str) else ""
    return any(isinstance(row[side], str) and _TRANSCRIPT.match(row[side]) and asked in row[side] for side in _SIDES)


def transcript(row: Row, column: str, open_end: bool = False) -> list[Message]:
    r"""Turns of an HH-RLHF transcript (Bai et al. 2022): `\n\nHuman: ...\n\nAssistant: ...`.

    A marker of the speaker who has the word already is part of the text: sampled responses imitate the format. With
    `open_end`, an empty last turn is the place of an answer, and left out.
    """
    content = text(row, column)
    if not _TRANSCRIPT.match(content):
        raise BadRow(f"{column} does not begin with Human: or Assistant:")
    turns: list[tuple[str, int, int]] = []  # speaker, where the marker begins, where it ends
    for marker in _TURN.finditer(content):
        if not turns or marker[1] != turns[-1][0]:
            turns.append((marker[1], marker.start(), marker.end()))
    ends = [start for _, start, _ in turns[1:]] + [len(content)]
    conversation = [
        {"role": _SPEAKERS[speaker], "content": content[begin:end].strip()}
        for (speaker, _, begin), end in zip(turns, ends, strict=True)
    ]
    if open_end and not conversation[-1]["content"]:
        conversation.pop()
    if not conversation or not all(message["content"] for message in conversation):
        raise BadRow(f"{column} has an empty turn")
    return conversation


def _transcripts(row: Row) -> Preference:
    return _pair_of_conversations(row, transcript(row, "chosen"), transcript(row, "rejected"))


# Instructions


def instruction(row: Row) -> list[Message]:
    """Alpaca's two columns (Taori et al. 2023) as one message of the user's."""
    content = text(row, "instruction")
    if row.get("input") not in (None, ""):
        extra = row["input"]
        if not isinstance(extra, str):
            raise BadRow(f"input is {kind_of(extra)}, not text")
        content = f"{content}\n\n{extra}" if extra.strip() else content
    return [{"role": "user", "content": content}]


def _answers(row: Row, opening: list[Message]) -> Preference:
    return _pair_of_conversations(row, opening + answered(row, "chosen"), opening + answered(row, "rejected"))


def _question(row: Row) -> Preference:
    has_system = isinstance(row["system"], str) and row["system"].strip()
    system = [{"role": "system", "content": row["system"]}] if has_system else []
    return _answers(row, system + asked(row, "question"))


# LLaMA-Factory


def sharegpt(row: Row, column: str) -> list[Message]:
    """Messages written as `{"from": ..., "value": ...}`, one alone or a list."""
    wrapped = row if isinstance(row.get(column), list) else {column: [row.get(column)]}
    conversation = []
    for message in records(wrapped, column):
        if message.get("from") not in _SHAREGPT:
            raise BadRow(f"{column} has a message whose from is not one of {', '.join(_SHAREGPT)}")
        if not isinstance(message.get("value"), str) or not message["value"].strip():
            raise BadRow(f"{column} has a message whose value is empty or not text")
        conversation.append({"role": _SHAREGPT[message["from"]], "content": message["value"]})
    return conversation


def _factory(row: Row) -> Preference:
    opening = sharegpt(row, "conversations")
    if row.get("system"):
        opening = [{"role": "system", "content": text(row, "system")}, *opening]
    chosen, rejected = (answered(row, side) if isinstance(row[side], str) else sharegpt(row, side) for side in _SIDES)
    return _pair_of_conversations(row, opening + chosen, opening + rejected)


SPECIAL: tuple[Format[Preference], ...] = (
    single(
        "LLaMA-Factory style pairs",
        ("conversations", *_SIDES),
        lambda row: is_list("conversations")(row) and all(isinstance(row[side], dict | list | str) for side in _SIDES),
        _factory,
    ),
    single("HH-RLHF transcripts", _SIDES, _is_transcript, _transcripts),
    single(
        "Orca pairs: system, question and two answers",
        ("system", "question", *_SIDES),
        is_text("question", *_SIDES),
        _question,
    ),
    single(
        "Alpaca style pairs",
        ("instruction", *_SIDES),
        is_text("instruction", *_SIDES),
        lambda row: _answers(row, instruction(row)),
    ),
    single(
        "RewardBench: a user's message and two answers",
        ("prompt", *_SIDES, "subset"),
        is_text("prompt", *_SIDES),
        lambda row: _answers(row, asked(row, "prompt")),
    ),
    *(
        single(f"conversations with {better} and {worse}", (*_SIDES, better, worse), is_list(*_SIDES), _conversations)
        for better, worse in _SCORES
    ),
)

GENERAL: tuple[Format[Preference], ...] = (
    single("text pairs with a prompt", ("prompt", *_SIDES), is_text("prompt", *_SIDES), _explicit_text),
    single("conversations, with or without a prompt", _SIDES, is_list(*_SIDES), _conversations),
    single(
        "text pairs with a common beginning",
        _SIDES,
        lambda row: "prompt" not in row and is_text(*_SIDES)(row),
        _implicit_text,
    ),
)

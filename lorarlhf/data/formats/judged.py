"""Rows of two responses and a verdict on them."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

from lorarlhf.data.formats.format import Format, single
from lorarlhf.data.formats.pairs import compared, instruction
from lorarlhf.data.formats.values import (
    Row,
    answered,
    asked,
    is_list,
    is_object,
    is_text,
    messages,
    number,
    one_of,
    records,
    text,
    texts,
)
from lorarlhf.data.rows import BadRow, Message, Preference

_FIRST_IS_1 = {"1": 1, "0": -1}
_SECOND_IS_1 = {"0": 1, "1": -1}
_WINNERS = {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0, "both_bad": 0}
VOTES = {"0": 0, "1": 1, "2": -1}  # tie, first, second
_ANNOTATOR = re.compile(r"annotator_?\d+")
_STEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def judged(
    prompt: list[Message],
    first: list[Message],
    second: list[Message],
    verdict: float,
    margin: float | None = None,
    annotators: tuple[str, ...] = (),
) -> Preference:
    """A pair from a verdict: positive, the first is preferred; negative, the second; 0, neither."""
    chosen, rejected = (first, second) if verdict >= 0 else (second, first)
    return compared(prompt + chosen, prompt + rejected, margin, verdict == 0, annotators)


def _summaries(row: Row) -> Preference:
    """TL;DR prompts are written as in Stiennon et al. 2020, table 8, and continued as text."""
    summaries = records(row, "summaries")
    if len(summaries) != 2:
        raise BadRow("summaries does not hold two")
    info = row["info"]
    if info.get("post"):
        subreddit, title, post = (text(info, column) for column in ("subreddit", "title", "post"))
        opening = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}"
    else:
        opening = f"Article:\n\n{text(info, 'article')}"
    sides = [f" {text(summary, 'text').strip()}" for summary in summaries]
    if sides[0] == sides[1]:
        raise BadRow("chosen and rejected are identical")
    choice = one_of(row, "choice", {"0": 0, "1": 1})
    worker = (row["worker"],) if isinstance(row.get("worker"), str) else ()
    return Preference(f"{opening}\n\nTL;DR:", sides[choice], sides[1 - choice], annotators=worker)


def _reddit(row: Row) -> Preference:
    """Votes in the ratio r are odds of r to 1, so the margin of their scores is log r (Bradley & Terry 1952)."""
    ratio = number(row, "score_ratio") if row.get("score_ratio") is not None else 0.0
    return judged(
        asked(row, "history"),
        answered(row, "human_ref_A"),
        answered(row, "human_ref_B"),
        one_of(row, "labels", _FIRST_IS_1),
        math.log(ratio) if ratio > 0 else None,
    )


def _strength(row: Row, column: str) -> float:
    strength = number(row, column)
    if abs(strength) > 3:
        raise BadRow(f"{column} is not between -3 and 3")
    return strength


def _steer_turns(row: Row, column: str) -> list[Message]:
    """A prompt of HelpSteer2: the user's text, or several turns with markers between them."""
    opening, *rest = _STEER_TURN.split(text(row, column))
    turns = [("User", opening), *zip(rest[::2], rest[1::2], strict=True)]
    return [{"role": speaker.lower(), "content": content} for speaker, content in turns if content.strip()]


def _steer(row: Row, prompt: list[Message], first: str, second: str, column: str) -> Preference:
    strength = _strength(row, column)
    return judged(prompt, answered(row, first), answered(row, second), -strength, abs(strength))


def _safe(row: Row) -> Preference:
    return judged(
        asked(row, "prompt"),
        answered(row, "response_0"),
        answered(row, "response_1"),
        one_of(row, "better_response_id", _SECOND_IS_1),
    )


def _arena_columns(row: Row) -> Preference:
    """Every turn of the user's was answered by both models."""
    prompts, *answers = (texts(row, column) for column in ("prompt", "response_a", "response_b"))
    if {len(prompts)} != set(map(len, answers)):
        raise BadRow("prompt, response_a and response_b differ in length")
    first, second = (
        [
            {"role": role, "content": content}
            for turn in zip(prompts, side, strict=True)
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        for side in answers
    )
    wins = [one_of(row, f"winner_{who}", {"0": 0, "1": 1}) for who in ("model_a", "model_b", "tie")]
    if sum(wins) != 1:
        raise BadRow("winner_model_a, winner_model_b and winner_tie do not name one outcome")
    return judged([], first, second, wins[0] - wins[1])


def _arena_conversations(row: Row) -> Preference:
    sides = messages(row, "conversation_a"), messages(row, "conversation_b")
    return judged([], *sides, one_of(row, "winner", _WINNERS))


def annotator_columns(row: Row) -> list[str]:
    """The columns in which several annotators' votes stand side by side."""
    return [column for column in row if _ANNOTATOR.fullmatch(column)]


def _voted(row: Row) -> Preference:
    """What more than half of the annotators say; without such a majority it is a tie."""
    votes = {column: one_of(row, column, VOTES) for column in annotator_columns(row)}
    verdict, count = Counter(votes.values()).most_common(1)[0]
    if 2 * count <= len(votes):
        verdict = 0
    who = tuple(name for name, vote in votes.items() if vote == verdict)
    sides = answered(row, "response1"), answered(row, "response2")
    chosen = 1 if verdict >= 0 else -1
    relative = tuple((name, chosen * vote) for name, vote in votes.items())
    return replace(judged(instruction(row), *sides, verdict, annotators=who), votes=relative)


JUDGED: tuple[Format[Preference], ...] = (
    single(
        "comparisons of summaries (OpenAI)",
        ("info", "summaries", "choice"),
        lambda row: is_object("info")(row) and is_list("summaries")(row),
        _summaries,
    ),
    single(
        "Stanford Human Preferences",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        is_text("history", "human_ref_A", "human_ref_B"),
        _reddit,
    ),
    single(
        "HelpSteer2 preferences",
        ("prompt", "response_1", "response_2", "preference_strength"),
        is_text("prompt", "response_1", "response_2"),
        lambda row: _steer(row, _steer_turns(row, "prompt"), "response_1", "response_2", "preference_strength"),
    ),
    single(
        "HelpSteer3 preferences",
        ("context", "response1", "response2", "overall_preference"),
        lambda row: is_list("context")(row) and is_text("response1", "response2")(row),
        lambda row: _steer(row, messages(row, "context"), "response1", "response2", "overall_preference"),
    ),
    single(
        "PKU-SafeRLHF (the more helpful response)",
        ("prompt", "response_0", "response_1", "better_response_id"),
        is_text("prompt", "response_0", "response_1"),
        _safe,
    ),
    single(
        "Chatbot Arena, turns as JSON lists",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        lambda row: all(isinstance(row[column], list | str) for column in ("prompt", "response_a", "response_b")),
        _arena_columns,
    ),
    single(
        "Chatbot Arena, two conversations",
        ("conversation_a", "conversation_b", "winner"),
        is_list("conversation_a", "conversation_b"),
        _arena_conversations,
    ),
    single(
        "PandaLM: votes of several annotators",
        ("instruction", "response1", "response2", "annotator1"),
        is_text("instruction", "response1", "response2"),
        _voted,
    ),
)

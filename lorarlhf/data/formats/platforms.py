"""Comparisons as Label Studio and Argilla export them, with what each annotator said.

Label Studio: a project of its template "Human Preference collection for RLHF". Argilla: fields `prompt`, `response1`
and `response2` and a question `preference`. docs/platforms.md has what may stand beside these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lorarlhf.data.formats.format import Format
from lorarlhf.data.formats.judged import judged
from lorarlhf.data.formats.values import Row, answered, asked, is_object, kind_of, messages
from lorarlhf.data.rows import BadRow, Message, Preference

Said = Literal["left", "right", "tie", "both_bad", "skip"]

_VERDICTS: dict[Said, int] = {"left": 1, "right": -1, "tie": 0, "both_bad": 0}
_NEITHER: dict[Any, Said] = {"tie": "tie", "both_bad": "both_bad"}
_ARGILLA: dict[Any, Said] = {"response1": "left", "response2": "right", **_NEITHER}


@dataclass(frozen=True)
class Judgement:
    """What one annotator said: of two responses the `left` one is the one named first. Strength is 1 to 3."""

    annotator: str
    said: Said
    strength: int | None = None
    comment: str | None = None
    seconds: float | None = None
    time: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt and all judgements of them; `pair_id` and `left` are what `collect tasks` wrote."""

    prompt: list[Message]
    left_response: list[Message]
    right_response: list[Message]
    judgements: tuple[Judgement, ...]
    pair_id: str | None
    left: Literal["a", "b"] | None


def label_studio(row: Row) -> Comparison:
    """A task with its annotations (before 1.0, `completions`). Raises BadRow for one that says something else."""
    data = row["data"]
    given = row.get("annotations", row.get("completions"))
    if not isinstance(given, list) or not all(isinstance(annotation, dict) for annotation in given):
        raise BadRow(f"annotations is {kind_of(given)}, not a list of objects")
    return Comparison(
        _prompt(data),
        answered(data, "answer1"),
        answered(data, "answer2"),
        tuple(map(_annotation, given)),
        _text_or_none(data.get("pair_id")),
        _side(data.get("left")),
    )


def argilla(row: Row) -> Comparison:
    """A record as `dataset.records.to_json` writes it. Raises BadRow for one that says something else."""
    fields, metadata = row["fields"], _object(row, "metadata")
    by_user: dict[str, dict[str, Any]] = {}
    for question, responses in _object(row, "responses").items():
        if not isinstance(responses, list) or not all(isinstance(response, dict) for response in responses):
            raise BadRow(f"responses to {question} is {kind_of(responses)}, not a list of objects")
        for response in responses:
            by_user.setdefault(str(response.get("user_id")), {})[question] = response.get("value")
    return Comparison(
        _prompt(fields),
        answered(fields, "response1"),
        answered(fields, "response2"),
        tuple(_response(user, values) for user, values in by_user.items()),
        _text_or_none(row.get("id")),
        _side(metadata.get("left")),
    )


def _annotation(annotation: Row) -> Judgement:
    """Without a selection nothing was said, nor where the task was skipped."""
    parts = [part for part in _listed(annotation, "result") if isinstance(part, dict)]
    values = {str(part.get("from_name")): _object(part, "value") for part in parts}
    chosen = [str(choice) for value in values.values() for choice in _listed(value, "choices")]
    said: Said = next((_NEITHER[choice] for choice in chosen if choice in _NEITHER), "skip")
    selected = [_object(part, "value").get("selected") for part in parts if part.get("type") == "pairwise"]
    if selected and selected[0] in ("left", "right"):
        said = selected[0]
    who = annotation.get("completed_by")
    if isinstance(who, dict):  # some exports name the user, others only number them
        who = who.get("email") or who.get("id")
    return Judgement(
        "annotator" if who is None else str(who),
        "skip" if annotation.get("was_cancelled") else said,
        _strength(values.get("strength", {}).get("rating")),
        "\n".join(map(str, _listed(values.get("comment", {}), "text"))) or None,
        _seconds(annotation.get("lead_time")),
        str(annotation.get("created_at") or ""),
    )


def _response(user: str, values: dict[str, Any]) -> Judgement:
    """A preference is a label that names a field, or a ranking of both fields, the better one first."""
    preference = values.get("preference")
    if isinstance(preference, list):
        preference = preference[0] if preference else None
    said = _ARGILLA.get(preference.lower().replace(" ", "") if isinstance(preference, str) else None)
    if said is None and preference is not None:
        raise BadRow(f"a preference is not one of {', '.join(_ARGILLA)}")
    return Judgement(user, said or "skip", _strength(values.get("strength")), _text_or_none(values.get("comment")))


def _prompt(fields: Row) -> list[Message]:
    return messages(fields, "prompt") if isinstance(fields.get("prompt"), list) else asked(fields, "prompt")


def _object(row: Row, column: str) -> Row:
    """An empty one where there is nothing."""
    value = row.get(column) or {}
    if not isinstance(value, dict):
        raise BadRow(f"{column} is {kind_of(value)}, not an object")
    return value


def _listed(row: Row, column: str) -> list[Any]:
    """An empty list where there is nothing."""
    value = row.get(column) or []
    if not isinstance(value, list):
        raise BadRow(f"{column} is {kind_of(value)}, not a list")
    return value


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _side(value: object) -> Literal["a", "b"] | None:
    return "a" if value == "a" else "b" if value == "b" else None


def _strength(value: object) -> int | None:
    return value if isinstance(value, int) and 1 <= value <= 3 else None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else None


def _preferences(comparison: Comparison) -> list[Preference | BadRow]:
    """One a judgement, as of `lorarlhf collect export`: people who disagree give rows that contradict each other."""
    sides = (comparison.prompt, comparison.left_response, comparison.right_response)
    return [
        judged(*sides, _VERDICTS[given.said], given.strength, (given.annotator,))
        for given in comparison.judgements
        if given.said != "skip"
    ]


def _platform(name: str, needs: tuple[str, str], read: Callable[[Row], Comparison]) -> Format[Preference]:
    return Format(name, needs, is_object(needs[0]), lambda row: _preferences(read(row)))


PLATFORMS: tuple[Format[Preference], ...] = (
    _platform("Label Studio: tasks with annotations", ("data", "annotations"), label_studio),
    _platform("Label Studio before 1.0: tasks with completions", ("data", "completions"), label_studio),
    _platform("Argilla 2: records with responses", ("fields", "responses"), argilla),
)

"""Pairs to labelling platforms, Label Studio and Argilla, and labels back from what they export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from lorarlhf.data.formats.platforms import Comparison, Judgement, argilla, label_studio
from lorarlhf.data.rows import BadRow, Prompt, completion_text, turns
from lorarlhf.data.sources import existing_file, iter_rows
from lorarlhf.errors import UserError
from lorarlhf.preferences.labels import Choice, Label, Labels, Side, read_labels
from lorarlhf.preferences.pairs import Pair

Platform = Literal["label-studio", "argilla"]

EXPORTED = ".json"  # what platforms write; the labelling page writes .jsonl

_OTHER: dict[Side, Side] = {"a": "b", "b": "a"}


def platform_tasks(pairs: Sequence[Pair], platform: Platform) -> list[dict[str, Any]]:
    """Pairs as tasks of Label Studio or records of Argilla, in order.

    Sides are shuffled, and which response stands on the left is written down: a platform shows all of its annotators
    the same. Sources are left out, which would tell them whose a response is. Prompts are text, or all of them lists of
    messages if one of them has more than a single turn of the user's.
    """
    texts = [_as_text(pair.prompt) for pair in pairs]
    prompts: Sequence[object] = [turns(pair.prompt, "user") for pair in pairs] if None in texts else texts
    return [_task(pair, prompt, platform) for pair, prompt in zip(pairs, prompts, strict=True)]


def labels_in(path: Path) -> Labels:
    """The labels in a file of the labelling page or, ending in .json, in what a platform exported of `platform_tasks`.

    Raises UserError for a file that cannot be read or holds something else.
    """
    if not path.name.endswith(EXPORTED):
        return read_labels(path)
    labels = Labels()
    for location, row in iter_rows(str(existing_file(str(path))), "train"):
        try:
            if isinstance(row, BadRow):
                raise row
            comparison = _comparison(row)
            if comparison.pair_id is None or comparison.left is None:
                raise BadRow("not written by `lorarlhf collect tasks`: no pair_id and left")
        except BadRow as bad:
            raise UserError(f"{location}: {bad}; to train on it as it is, give the file to --dataset") from None
        for judgement in comparison.judgements:
            labels.take(_label(comparison.pair_id, comparison.left, judgement))
    return labels


def _comparison(row: dict[str, Any]) -> Comparison:
    for column, read in (("data", label_studio), ("fields", argilla)):
        if isinstance(row.get(column), dict):
            return read(row)
    raise BadRow("neither a task of Label Studio nor a record of Argilla")


def _label(pair_id: str, left: Side, given: Judgement) -> Label:
    sides: dict[str, Choice] = {"left": left, "right": _OTHER[left], "tie": "tie", "both_bad": "both_bad"}
    return Label(
        pair_id=pair_id,
        annotator=given.annotator,
        choice=sides.get(given.said, "skip"),
        left=left,
        repeat=False,
        seconds=given.seconds,
        strength=given.strength if given.said in ("left", "right") else None,
        comment=given.comment,
        time=given.time,
        seed=0,
        criteria={},
    )


def _task(pair: Pair, prompt: object, platform: Platform) -> dict[str, Any]:
    left: Side = "a" if blake2b(json.dumps(["left", pair.id]).encode(), digest_size=1).digest() < b"\x80" else "b"
    sides = [completion_text(pair.response_a), completion_text(pair.response_b)]
    first, second = sides if left == "a" else reversed(sides)
    if platform == "argilla":
        fields = {"prompt": prompt, "response1": first, "response2": second}
        return {"id": pair.id, "fields": fields, "metadata": {"left": left}, "suggestions": {}, "responses": {}}
    return {"data": {"prompt": prompt, "answer1": first, "answer2": second, "pair_id": pair.id, "left": left}}


def _as_text(prompt: Prompt) -> str | None:
    if isinstance(prompt, str):
        return prompt
    return prompt[0]["content"] if len(prompt) == 1 and prompt[0]["role"] == "user" else None

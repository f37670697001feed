"""Responses to the held-out prompts before training and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.reporting.changes import Change, change
from lorarlhf.reporting.folder import number, objects, part
from lorarlhf.reporting.plots import cell

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A prompt, turn by turn as (role, text), and both responses.

    Attributes:
        reward_before, reward_after: None where there was no reward.
        words: of the response after.
    """

    prompt: tuple[tuple[str, str], ...]
    change: Change
    reward_before: float | None
    reward_after: float | None
    words: int


@dataclass(frozen=True)
class Samples:
    """What `before` and `after` are, in words, and the samples."""

    before: str
    after: str
    samples: tuple[Sample, ...]


def collect_samples(rows: Sequence[Row], summary: Row, evaluation: Row) -> Samples | None:
    """Of `samples.jsonl` the first evaluation beside that of the policy kept, or the last; else an evaluation's.

    Args:
        rows: of `ppo/samples.jsonl`.
        summary, evaluation: of ppo.
    """
    by_iteration: dict[Any, list[Row]] = {}
    for row in rows:
        if number(row.get("iteration")) is not None:
            by_iteration.setdefault(row["iteration"], []).append(row)
    if not by_iteration:
        return _of_evaluation(evaluation)
    first, *_, last = [*by_iteration, *by_iteration]
    kept = part(summary, "best").get("iteration")
    # A policy kept from before training is no other one: then the last shows what training did.
    kept_is_there = isinstance(kept, int) and kept in by_iteration and kept != first
    chosen = kept if kept_is_there else last
    pairs = zip(by_iteration[first], by_iteration[chosen], strict=False)
    after = f"iteration {cell(chosen)}, {'the policy kept' if kept_is_there else 'the last evaluation'}"
    samples = (
        _sample(a.get("prompt"), a.get("response"), b.get("response"), a.get("reward"), b.get("reward"))
        for a, b in pairs
        if a.get("prompt") == b.get("prompt")
    )
    return Samples(f"iteration {cell(first)}", after, tuple(samples))


def _of_evaluation(evaluation: Row) -> Samples | None:
    found = tuple(
        _sample(
            row.get("prompt"), row.get("before"), row.get("after"), row.get("reward_before"), row.get("reward_after")
        )
        for row in objects(evaluation.get("samples"))
    )
    return Samples(cell(evaluation.get("reference")), cell(evaluation.get("stage")), found) if found else None


def _sample(prompt: Any, before: Any, after: Any, reward_before: Any, reward_after: Any) -> Sample:
    old, new = cell(before), cell(after)
    turns = tuple((cell(turn.get("role")), cell(turn.get("content"))) for turn in objects(prompt))
    return Sample(
        turns or (("", cell(prompt)),), change(old, new), number(reward_before), number(reward_after), len(new.split())
    )

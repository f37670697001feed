"""Symptoms of a run that goes wrong, read off the rows of `metrics.jsonl` while it runs. docs/ppo.md explains them.

They only speak: what stops a run is `ppo.stop_when`. Each is a function of the rows so far and of nothing else, so a
resumed run that reads its earlier rows again goes on where it was. Training rows and evaluations come apart, both in
the order in which they were logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Row = Mapping[str, Any]

WINDOW = 5  # iterations that are averaged: one alone says little
LENGTH_FACTOR = 2.0
REPETITION = 0.2  # human text has a few hundredths (Welleck et al. 2020, table 1)
DISTINCT = 0.5
FINISHED = 0.5
FALLS = 3  # evaluations in a row: by chance alone one in 24


def cut_off(training: Sequence[Row], evaluations: Sequence[Row]) -> str | None:
    """All responses of the last iteration or evaluation were cut at the limit, or most of the last iterations' were."""
    last = [row.get(key) for rows, key in ((training, "finished"), (evaluations, "eval_finished")) for row in rows[-1:]]
    finished = _mean(training[-WINDOW:], "finished")
    if 0.0 in last:
        share = "all"
    elif finished is not None and finished < FINISHED:
        share = f"{1 - finished:.0%} of the"
    else:
        return None
    return f"{share} responses are cut off: raise ppo.response_length, or set ppo.missing_eos_penalty to make them end"


def length_drift(training: Sequence[Row], evaluations: Sequence[Row]) -> str | None:
    """Responses have become more than twice as long as at first, or less than half."""
    first, now = _first_and_now(training, "response_length")
    if first is None or now is None or first / LENGTH_FACTOR <= now <= first * LENGTH_FACTOR:
        return None
    return (
        f"responses have gone from {first:.0f} to {now:.0f} tokens: read samples.jsonl, the reward may pay for length"
    )


def repetitive(training: Sequence[Row], evaluations: Sequence[Row]) -> str | None:
    """Responses repeat themselves, and more than twice as much as at first."""
    first, now = _first_and_now(training, "repetition")
    if first is None or now is None or now < max(REPETITION, 2 * first):
        return None
    return f"responses repeat {now:.0%} of what they say: read samples.jsonl; a higher ppo.kl_coef holds the language"


def alike(training: Sequence[Row], evaluations: Sequence[Row]) -> str | None:
    """The responses to one prompt have become mostly the same: then there is nothing to compare, and no gradient."""
    distinct = _mean(training[-WINDOW:], "distinct") if len(training) >= WINDOW else None
    if distinct is None or distinct >= DISTINCT:
        return None
    return (
        f"only {distinct:.0%} of the responses to a prompt differ: a higher ppo.temperature, ppo.kl_coef or "
        "ppo.entropy_coef keeps them apart"
    )


def fits_training_only(training: Sequence[Row], evaluations: Sequence[Row]) -> str | None:
    """Held-out reward has fallen from evaluation to evaluation while reward in training rose."""
    latest = evaluations[-FALLS - 1 :]
    rewards = [row["eval_reward"] for row in latest]
    if len(latest) <= FALLS or any(later >= earlier for earlier, later in pairwise(rewards)):
        return None
    before, now = (
        _mean([row for row in training if row["iteration"] <= evaluation["iteration"]][-WINDOW:], "reward")
        for evaluation in (latest[0], latest[-1])
    )
    if before is None or now is None or now <= before:
        return None
    return (
        f"reward rises ({before:.3f} to {now:.3f}) while held-out reward falls ({rewards[0]:.3f} to "
        f"{rewards[-1]:.3f}): train on more prompts, or stop here (ppo.stop_when.held_out_worse)"
    )


SYMPTOMS: tuple[Callable[[Sequence[Row], Sequence[Row]], str | None], ...] = (
    cut_off,
    length_drift,
    repetitive,
    alike,
    fits_training_only,
)


class SymptomMonitor:
    """Follows the rows of a run, and says each symptom once until it has cleared."""

    def __init__(self) -> None:
        self.training: list[Row] = []
        self.evaluations: list[Row] = []
        self.present: set[str] = set()

    def observe(self, row: Row) -> dict[str, str]:
        """Take note of a logged row; returns the symptoms that have come with it, each by its name with one line."""
        if "reward" in row:
            self.training.append(row)
        if "eval_reward" in row:
            self.evaluations.append(row)
        texts = {rule.__name__: rule(self.training, self.evaluations) for rule in SYMPTOMS}
        here = {name: text for name, text in texts.items() if text is not None}
        new = {name: text for name, text in here.items() if name not in self.present}
        self.present = set(here)
        return new


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """Of the rows that have the number; None if none has."""
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else None


def _first_and_now(training: Sequence[Row], key: str) -> tuple[float | None, float | None]:
    """Means over the first and the last iterations; None until these are different ones."""
    if len(training) < 2 * WINDOW:
        return None, None
    return _mean(training[:WINDOW], key), _mean(training[-WINDOW:], key)

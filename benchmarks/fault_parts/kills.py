"""`kill -9` at random moments: see `benchmarks/kills.py`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from kills import measure

from fault_parts.tally import Tally, Task

STAGES = {"sft": ("sft", ""), "reward": ("reward", "")} | {
    f"ppo {name}": ("ppo", name) for name in ("gae", "rloo", "grpo")
}
AT_ONCE = 10  # kills of one row: what is lost where the campaign is stopped


def tasks(options: argparse.Namespace) -> dict[str, Task]:
    """Some of each stage and algorithm, then more of each."""
    each, rest = divmod(options.kills, len(STAGES))
    counts = {name: each + (number < rest) for number, name in enumerate(STAGES)}
    return {
        f"{name}, from {first}": partial(
            kill, *STAGES[name], min(AT_ONCE, counts[name] - first), options.seed * 1000 + first
        )
        for first in range(0, each + 1, AT_ONCE)
        for name in STAGES
        if first < counts[name]
    }


def kill(stage: str, estimator: str, kills: int, seed: int, folder: Path) -> Tally:
    result = measure(stage, estimator or "gae", kills, times=3, processes=1, seed=seed, work=folder)
    failures = [f"run {each['run']}: {', '.join(each['differ'])} differ" for each in result["differences"]]
    tally = Tally(result["kills"], failures)
    tally.more.update(runs=result["runs"], ended_before_the_kill=result["ended_before_the_kill"])
    return tally

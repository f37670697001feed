"""How long a recipe has still to go, by what the policy's iterations have taken.

Nothing is said before the first of them. How fast a model writes cannot be told from how fast it trains: on a CPU, a
third of an iteration of a small model was sampling, and on a card it is more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorarlhf.recipe.sections import PPOConfig, Recipe, Step
from lorarlhf.reporting.folder import Folder, number
from lorarlhf.rl.prompts import is_due
from lorarlhf.run import Run
from lorarlhf.stages.agenda import clock

RECENT = 10  # iterations: responses grow and shrink as the policy learns
PHASES = ("seconds_rollout", "seconds_score", "seconds_update")


@dataclass(frozen=True)
class Pace:
    """What the policy's latest iterations took.

    Attributes:
        done: iterations so far.
        iteration: seconds of one.
        answer: seconds to sample and score one response.
    """

    done: int
    iteration: float
    answer: float

    def training(self, config: PPOConfig) -> float:
        """Seconds to the end of training, unless a rule ends it before; its evaluations are among them."""
        to_come = range(self.done + 1, config.iterations + 1)
        looks = sum(is_due(number, config.eval_every, number == config.iterations) for number in to_come)
        return len(to_come) * self.iteration + looks * config.eval_prompts * self.answer

    def evaluation(self, prompts: int) -> float:
        """Seconds in which both policy and reference answer so many prompts."""
        return 2 * prompts * self.answer


def time_left(recipe: Recipe, run: Run, steps: Sequence[Step], since: float) -> str:
    """As `about 38:00 left, then report, export`; nothing where nothing has been measured that it follows from.

    Args:
        steps: of the recipe, the one that is on and those to come.
        since: when that one began, of `time.time`.
    """
    on = steps[0] if steps else None
    pace = pace_of(run, recipe.ppo, since if on == "ppo" else 0.0)
    if pace is None or {"sft", "reward"} & {*steps}:
        return ""
    known: dict[Step, float] = {"ppo": pace.training(recipe.ppo)}
    if tested := _tested(recipe, run):
        known["evaluate"] = pace.evaluation(tested)
    seconds = sum(known.get(step, 0.0) for step in steps)
    if on == "evaluate":
        seconds -= time.time() - since
    if on not in known or seconds < 1:
        return ""
    others = [step for step in steps if step not in known]
    return f"about {clock(seconds)} left" + (f", then {', '.join(others)}" if others else "")


def pace_of(run: Run, config: PPOConfig, since: float = 0.0) -> Pace | None:
    """From the run's `ppo/metrics.jsonl`; None before an iteration has ended, or if the file is older than `since`."""
    path = run.stage("ppo") / "metrics.jsonl"
    if not path.is_file() or path.stat().st_mtime < since:
        return None
    return _read(run.path, path.stat().st_mtime_ns, config.batch_size)


def _tested(recipe: Recipe, run: Run) -> int:
    """How many prompts `evaluate` asks, as far as that is known: 0 where it is not before they are read."""
    counts = (recipe.data.eval_examples, run.read_summary("ppo").get("eval_rows"))
    return min(filter(None, counts), default=0)


@lru_cache(maxsize=1)  # a display asks twice a second
def _read(run: Path, changed: int, batch_size: int) -> Pace | None:
    return measured(Folder(run).rows("ppo/metrics.jsonl"), batch_size)


def measured(rows: Sequence[Mapping[str, Any]], batch_size: int) -> Pace | None:
    """The pace that logged rows tell; the first iteration, in which much is set up, counts if there is no other."""
    timed = [row for row in rows if all(number(row.get(key)) is not None for key in (*PHASES, "iteration"))]
    if not timed:
        return None
    recent = timed[1:][-RECENT:] or timed
    sample, score, update = (sum(row[phase] for row in recent) / len(recent) for phase in PHASES)
    return Pace(timed[-1]["iteration"], sample + score + update, (sample + score) / batch_size)

"""Reward over KL along a run, and where the run is over-optimised.

The reward that a policy is trained against is a proxy of what is wanted. Along a run the proxy rises with the distance
from the start, while what it stands for rises, turns and falls (Gao et al. 2023, figure 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from lorarlhf.evaluation.policy import win_rate
from lorarlhf.intervals import Estimate, mean, wilson

Outcome = Literal["over_optimised", "judge_falls", "unclear", "not_seen"]


@dataclass(frozen=True)
class Checkpoint:
    """A policy of the run on N prompts, which are the same for all.

    Attributes:
        iteration: 0 is where the run started.
        kl, reward: [N] of its responses.
        judged: [N] the judge's reward; None without a judge.
    """

    iteration: int
    kl: np.ndarray
    reward: np.ndarray
    judged: np.ndarray | None = None


@dataclass(frozen=True)
class Turn:
    """What became of the judge's reward along a run.

    Attributes:
        outcome: see `find_turn`.
        before, after: indices of the two checkpoints that tell.
        reward, judged: what has changed between them.
    """

    outcome: Outcome
    before: int
    after: int
    reward: Estimate
    judged: Estimate


def find_turn(reward: np.ndarray, judged: np.ndarray) -> Turn:
    """Whether, and from where on, the judge's reward falls while the run's own goes on rising.

    Checkpoints are compared with the one that the judge likes best, prompt by prompt: a response differs more from
    prompt to prompt than from checkpoint to checkpoint. That one is chosen after the fact, as the highest of several
    means, and beside it others look lower by chance. So the intervals are those of all pairs of checkpoints together.

    - `over_optimised`: from `after` on, the judge's reward is below that of `before`, the best, for certain, at every
      checkpoint to the last, and at `after` the run's own is above for certain.
    - `judge_falls`: the last checkpoint is below the best for certain, but nowhere does the run's own rise with it.
    - `unclear`: the last is lower than the best by what may be chance.
    - `not_seen`: the last is the best; the changes are those since the start.

    Args:
        reward, judged: [K, N] of K checkpoints in their order, the start first, on the same N prompts.
    """
    last = len(judged) - 1
    pairs = last * (last + 1) // 2
    best = last - int(judged.mean(1)[::-1].argmax())  # of equals the last

    def turn(outcome: Outcome, before: int, after: int) -> Turn:
        changes = [mean(values[after] - values[before], of=pairs) for values in (reward, judged)]
        return Turn(outcome, before, after, *changes)

    if best == last:
        return turn("not_seen", 0, last)
    later = [turn("over_optimised", best, after) for after in range(best + 1, last + 1)]
    fallen = list(takewhile(lambda change: change.judged.high < 0, reversed(later)))  # to the last
    if not fallen:
        return turn("unclear", best, last)
    risen = [change for change in fallen if change.reward.low > 0]
    return risen[-1] if risen else turn("judge_falls", best, last)


def checkpoint_figures(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """What `frontier.json` holds of each: means with 95% intervals, and how often it beats the start, the first."""
    start = checkpoints[0]
    rows = []
    for point in checkpoints:
        row: dict[str, Any] = {"iteration": point.iteration, **figures("kl", mean(point.kl))}
        for prefix, after, before in (("", point.reward, start.reward), ("judge_", point.judged, start.judged)):
            if after is None or before is None:
                continue
            row |= figures(f"{prefix}reward", mean(after))
            if point is not start:
                won = win_rate(after.tolist(), before.tolist())
                row |= figures(f"{prefix}win_rate", wilson(won, len(after)))
        rows.append(row)
    return rows


def turn_figures(checkpoints: Sequence[Checkpoint], turn: Turn) -> dict[str, Any]:
    """What `frontier.json` holds of the turn, checkpoints by their iterations."""
    before, after = (checkpoints[index].iteration for index in (turn.before, turn.after))
    return {
        "outcome": turn.outcome,
        "best": after if turn.outcome == "not_seen" else before,
        "from": after if turn.outcome == "over_optimised" else None,
        "compared": [before, after],
        **figures("reward_change", turn.reward),
        **figures("judge_change", turn.judged),
    }


def figures(name: str, estimate: Estimate) -> dict[str, Any]:
    """A figure and its interval, as the files of a run have them."""
    return {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}

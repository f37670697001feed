"""From raw scores to what a response is worth: normalised, clipped, penalised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far (Chan et al. 1983, parallel update)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Of all scores so far, as a population; 1 before there are any."""
        return (self.squares / self.count) ** 0.5 if self.count else 1.0

    def update(self, x: Tensor) -> None:
        """Take in [n] raw scores."""
        count, mean = x.numel(), float(x.mean())
        total = self.count + count
        delta = mean - self.mean
        self.squares += float((x - mean).square().sum()) + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def normalize(self, x: Tensor) -> Tensor:
        """[n] raw scores by their distance from the mean, in standard deviations."""
        return (x - self.mean) / (self.std + 1e-8)


def shape_scores(
    scores: Tensor,
    finished: Tensor,
    moments: RunningMoments | None,
    reward_clip: float | None,
    missing_eos_penalty: float | None,
) -> Tensor:
    """Normalise, clip, then take the penalty from responses cut at the limit, so that clipping cannot hide it.

    Args:
        scores: [B]; finished: [B] bool.
        moments: of all scores so far, to normalise by; None leaves them as they are.
    """
    if moments is not None:
        scores = moments.normalize(scores)
    if reward_clip is not None:
        scores = scores.clamp(-reward_clip, reward_clip)
    if missing_eos_penalty is not None:
        scores = torch.where(finished, scores, scores - missing_eos_penalty)
    return scores

"""Losses of a reward model, and how well its margins are calibrated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    ties: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood that the chosen response wins (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    Args:
        chosen, rejected: [B] scores.
        margin: [B] by how much the chosen one should win (Touvron et al. 2023, eq. 2).
        label_smoothing: the share of labels taken to be flipped (Wang et al. 2024, "Secrets of RLHF II").
        center_rewards_coefficient: weight of (chosen + rejected)^2, which pulls the mean score to 0
            (Eisenstein et al. 2023, eq. 2).
        ties: [B] bool, pairs of which neither won: each side wins with a target of 0.5, without margin.

    Returns:
        Scalar mean over the pairs.
    """
    difference = chosen - rejected
    if margin is not None:
        difference = difference - (margin if ties is None else margin.masked_fill(ties, 0.0))
    lost = torch.full_like(difference, label_smoothing)  # the probability that the rejected response should have won
    if ties is not None:
        lost = lost.masked_fill(ties, 0.5)
    loss = -(1 - lost) * F.logsigmoid(difference) - lost * F.logsigmoid(-difference)
    return loss.mean() + center_rewards_coefficient * (chosen + rejected).square().mean()


def regression_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error between [B] scores and [B] absolute ratings."""
    return F.mse_loss(scores, targets)


def pair_calibration(margins: Tensor, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(margin) as the probability that the chosen response wins.

    Confidence is max(p, 1 - p), a pair is right when its margin is positive, and the error is the gap between the two
    in each of `bins` equal bins of [0.5, 1], weighted by their pairs (Guo et al. 2017, eq. 3).

    Args:
        margins: [N] score of the chosen response less that of the rejected one.
    """
    confidence = torch.sigmoid(margins.abs().double())
    correct = (margins > 0).double()
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, index, confidence - correct)
    return float(gaps.abs().sum() / len(margins))

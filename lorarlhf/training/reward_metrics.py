"""How well scores predict what people preferred, or how they rated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorarlhf.intervals import wilson


def preference_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Accuracy (equal scores count half) with its 95% interval, mean margin, loss and calibration error over [N] pairs
    of scores."""
    margins = chosen - rejected
    accuracy = wilson(share_won(margins), len(margins))
    return {
        "eval_accuracy": accuracy.value,
        "eval_accuracy_interval": [accuracy.low, accuracy.high],
        "eval_margin": margins.mean().item(),
        "eval_loss": -F.logsigmoid(margins).mean().item(),
        "eval_calibration_error": pair_calibration(margins),
    }


def reliability(margins: Tensor, bins: int = 10) -> list[dict[str, float]]:
    """The curve that `pair_calibration` is the area of: mean confidence and accuracy of each bin that has pairs."""
    confidence = torch.sigmoid(margins.abs().double())
    correct = (margins > 0).double()
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    curve = []
    for number in index.unique().tolist():
        inside = index == number
        right = wilson(correct[inside].mean().item(), int(inside.sum()))
        curve.append(
            {
                "pairs": int(inside.sum()),
                "confidence": confidence[inside].mean().item(),
                "accuracy": right.value,
                "accuracy_low": right.low,
                "accuracy_high": right.high,
            }
        )
    return curve


def reliability_lines(curve: Sequence[Mapping[str, float]], bins: int = 10) -> list[tuple[str, str]]:
    """`reliability` as a small table, a line a bin, each with its heading."""
    if not curve:
        return []
    lines = [("reliability", f"{'says':>6}  {'is right':>8}  {'95%':^15}  {'pairs':>7}")]
    for part in curve:
        number = min(int((part["confidence"] - 0.5) * 2 * bins), bins - 1)
        low, high = (50 + 50 * edge / bins for edge in (number, number + 1))
        interval = f"{part['accuracy_low']:.1%} to {part['accuracy_high']:.1%}"
        shares = f"{part['confidence']:>6.1%}  {part['accuracy']:>8.1%}  {interval:^15}"
        lines.append((f"  {low:.0f} to {high:.0f}% sure", f"{shares}  {part['pairs']:>7,}"))
    return lines


def longer_wins(chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]) -> float:
    """Accuracy of preferring whichever is longer in tokens: what a reward model has to beat."""
    return share_won(torch.tensor([len(c) - len(r) for c, r in zip(chosen, rejected, strict=True)]))


def regression_metrics(scores: Tensor, targets: Tensor) -> dict[str, float | None]:
    """Error of [N] scores and their correlation with the [N] ratings they should predict, None if either is flat."""
    correlation = torch.corrcoef(torch.stack([scores, targets]))[0, 1]
    return {
        "eval_loss": F.mse_loss(scores, targets).item(),
        "eval_correlation": correlation.item() if correlation.isfinite() else None,
    }


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


def share_won(margins: Tensor) -> float:
    """Share of [N] margins above 0; those of 0 count half."""
    return ((margins > 0).float() + 0.5 * (margins == 0).float()).mean().item()

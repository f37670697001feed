"""How good a reward model is: numbers against numpy and arithmetic."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lorarlhf.intervals import wilson
from lorarlhf.training.reward_metrics import (
    longer_wins,
    pair_calibration,
    preference_metrics,
    regression_metrics,
    reliability,
    reliability_lines,
)

CHOSEN, REJECTED = [2.0, 0.5, -1.0, 3.0], [1.0, 0.5, 1.0, -2.0]


def test_preference_metrics():
    metrics = preference_metrics(torch.tensor(CHOSEN), torch.tensor(REJECTED))
    margins = [c - r for c, r in zip(CHOSEN, REJECTED, strict=True)]
    assert metrics["eval_accuracy"] == (1 + 0.5 + 0 + 1) / 4
    assert metrics["eval_margin"] == pytest.approx(sum(margins) / 4)
    assert metrics["eval_loss"] == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 4)
    assert 0 <= metrics["eval_calibration_error"] <= 1
    interval = wilson(2.5 / 4, 4)
    assert metrics["eval_accuracy_interval"] == pytest.approx([interval.low, interval.high])


def test_the_longer_wins():
    assert longer_wins([[1, 2], [1], [1, 2, 3]], [[1], [1], [1, 2, 3, 4]]) == 0.5


def test_regression_metrics():
    scores, targets = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.5, 2.5, 3.0, 3.5])
    metrics = regression_metrics(torch.tensor(scores), torch.tensor(targets))
    assert metrics["eval_loss"] == pytest.approx(((scores - targets) ** 2).mean())
    assert metrics["eval_correlation"] == pytest.approx(np.corrcoef(scores, targets)[0, 1])


# Calibration


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def pairs(*groups: tuple[float, int, int]) -> torch.Tensor:
    """Margins of (confidence, right, wrong) groups: positive where the chosen response wins."""
    margins = [
        sign * logit(confidence) for confidence, right, wrong in groups for sign in [1.0] * right + [-1.0] * wrong
    ]
    return torch.tensor(margins)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(0.75, 3, 1)], 0.0),  # right as often as it says
        ([(0.75, 4, 0)], 0.25),  # too modest
        ([(0.75, 2, 2)], 0.25),  # too sure
        ([(0.75, 0, 4)], 0.75),  # wrong every time
        ([(0.95, 1, 1)], 0.45),
        ([(0.75, 4, 0), (0.95, 2, 2)], 0.35),  # errors of either sign add up
        ([(0.75, 3, 1), (0.95, 2, 2)], 0.225),
        ([(0.55, 1, 0), (0.95, 1, 2)], (0.45 + 3 * (0.95 - 1 / 3)) / 4),
        ([(0.62, 4, 0), (0.68, 2, 4)], (4 * 0.38 + 6 * (0.68 - 1 / 3)) / 10),  # ten bins from 0.5 to 1: they differ
    ],
)
def test_calibration_worked_by_hand(groups, expected):
    error = pair_calibration(pairs(*groups))
    assert isinstance(error, float)
    assert_close(error, expected, atol=1e-6, rtol=0)


def slow_calibration(margins: list[float], bins: int) -> float:
    """Guo et al. 2017, equation 3, over equal bins of [0.5, 1], in float64."""
    error = 0.0
    for b in range(bins):
        low, high = 0.5 + 0.5 * b / bins, 0.5 + 0.5 * (b + 1) / bins
        inside = [m for m in margins if low <= max(sigmoid(m), sigmoid(-m)) < high]
        if inside:
            confidence = math.fsum(max(sigmoid(m), sigmoid(-m)) for m in inside) / len(inside)
            accuracy = sum(m > 0 for m in inside) / len(inside)
            error += len(inside) / len(margins) * abs(confidence - accuracy)
    return error


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_calibration_equals_the_reference(bins):
    margins = 1.5 * torch.randn(60, generator=torch.Generator().manual_seed(0)) + 0.5
    assert_close(pair_calibration(margins, bins=bins), slow_calibration(margins.tolist(), bins), atol=1e-6, rtol=0)


def test_one_bin_compares_the_means():
    # Too modest by 0.25 and too sure by 0.25 cancel within one bin.
    margins = pairs((0.75, 4, 0), (0.95, 2, 2))
    assert_close(pair_calibration(margins, bins=1), 0.1, atol=1e-6, rtol=0)


def test_the_curve_as_a_table():
    curve = reliability(pairs((0.52, 3, 1), (0.97, 1000, 500), (1 - 1e-9, 1, 0)))
    assert [part["pairs"] for part in curve] == [4, 1501]
    heading, low, high = reliability_lines(curve)
    assert heading == ("reliability", "  says  is right        95%          pairs")
    assert low == ("  50 to 55% sure", " 52.0%     75.0%  30.1% to 95.4%         4")
    assert high[0] == "  95 to 100% sure"
    assert high[1].split() == ["97.0%", "66.7%", "64.3%", "to", "69.0%", "1,501"]
    assert len({len(text) for _, text in (heading, low, high)}) == 1
    assert reliability_lines([]) == []


def test_sure_and_right_is_calibrated():
    assert_close(pair_calibration(torch.full((5,), 40.0)), 0.0, atol=1e-6, rtol=0)
    assert_close(pair_calibration(torch.full((5,), -40.0)), 1.0, atol=1e-6, rtol=0)


def test_labels_drawn_from_the_scores_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    size = 2 * torch.randn(20_000, generator=generator).abs()
    wins = torch.rand(20_000, generator=generator) < torch.sigmoid(size)
    margins = torch.where(wins, size, -size)
    assert pair_calibration(margins) < 0.02
    assert pair_calibration(3 * margins) > 0.05  # the same order, three times as sure

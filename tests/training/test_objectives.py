import math

import pytest
import torch
from torch.testing import assert_close

from lorarlhf.training.objectives import bradley_terry_loss, pair_calibration, regression_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_bradley_terry(
    chosen: list[float], rejected: list[float], margin: list[float] | None, smoothing: float, centering: float
) -> float:
    """The mean over pairs, in float64: what the label says with probability 1 - s, its opposite with probability s."""
    losses = []
    for i in range(len(chosen)):
        difference = chosen[i] - rejected[i] - (margin[i] if margin else 0.0)
        right, wrong = sigmoid(difference), sigmoid(-difference)
        loss = -(1 - smoothing) * math.log(right) - smoothing * math.log(wrong)
        losses.append(loss + centering * (chosen[i] + rejected[i]) ** 2)
    return math.fsum(losses) / len(losses)


def loss_of(chosen, rejected, margin=None, smoothing=0.0, centering=0.0) -> torch.Tensor:
    return bradley_terry_loss(
        torch.as_tensor(chosen),
        torch.as_tensor(rejected),
        margin=None if margin is None else torch.as_tensor(margin),
        label_smoothing=smoothing,
        center_rewards_coefficient=centering,
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "smoothing", "centering", "expected"),
    [
        ([1.5], [1.5], None, 0.0, 0.0, math.log(2)),
        ([math.log(3)], [0.0], None, 0.0, 0.0, math.log(4 / 3)),  # P(chosen) = 3/4
        ([0.0], [math.log(3)], None, 0.0, 0.0, math.log(4)),
        ([math.log(3)], [0.0], None, 0.25, 0.0, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ([2.5], [0.5], [2.0], 0.0, 0.0, math.log(2)),  # just the margin asked for
        ([math.log(3) + 2], [0.0], [2.0], 0.25, 0.0, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ([3.0], [3.0], None, 0.0, 0.01, math.log(2) + 0.36),
        ([3.0, -1.0], [3.0, -1.0], None, 0.0, 0.01, math.log(2) + 0.2),  # (36 + 4) / 2 of a hundredth
        ([3.0], [-3.0], [6.0], 0.0, 0.5, math.log(2)),  # centred pairs pay nothing; the margin is no part of it
        ([0.0, 0.0], [0.0, math.log(3)], None, 0.0, 0.0, (math.log(2) + math.log(4)) / 2),
    ],
)
def test_bradley_terry_worked_by_hand(chosen, rejected, margin, smoothing, centering, expected):
    loss = loss_of(chosen, rejected, margin, smoothing, centering)
    assert loss.shape == ()
    assert_close(loss.item(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("with_margin", [False, True])
@pytest.mark.parametrize(("smoothing", "centering"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.02), (0.3, 0.1)])
def test_bradley_terry_equals_the_reference(with_margin, smoothing, centering):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margin = torch.randn(3, 9, generator=generator)
    expected = slow_bradley_terry(
        chosen.tolist(), rejected.tolist(), margin.tolist() if with_margin else None, smoothing, centering
    )
    loss = loss_of(chosen, rejected, margin if with_margin else None, smoothing, centering)
    assert_close(loss.item(), expected, atol=1e-6, rtol=1e-6)


def test_bradley_terry_gradient_is_the_chance_of_being_wrong():
    chosen, rejected = torch.tensor([math.log(3), 0.0]).requires_grad_(), torch.zeros(2, requires_grad=True)
    loss_of(chosen, rejected).backward()
    assert_close(chosen.grad, torch.tensor([-0.25, -0.5]) / 2)
    assert_close(rejected.grad, torch.tensor([0.25, 0.5]) / 2)


def test_smoothed_labels_are_content_with_that_much_certainty():
    chosen = torch.tensor([math.log(9)], requires_grad=True)  # P(chosen) = 0.9
    loss_of(chosen, [0.0], smoothing=0.1).backward()
    assert_close(chosen.grad, torch.zeros(1))


def test_bradley_terry_stays_finite_far_out():
    chosen = torch.tensor([500.0, -500.0], requires_grad=True)
    loss = loss_of(chosen, [-500.0, 500.0])
    loss.backward()
    assert_close(loss.item(), 500.0)
    assert_close(chosen.grad, torch.tensor([0.0, -0.5]))


def test_the_order_of_pairs_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margin = torch.randn(3, 9, generator=generator)
    order = torch.randperm(9, generator=generator)
    plain = loss_of(chosen, rejected, margin, 0.1, 0.1)
    assert_close(loss_of(chosen[order], rejected[order], margin[order], 0.1, 0.1), plain)


def test_regression_is_the_mean_squared_error():
    scores = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
    loss = regression_loss(scores, torch.tensor([0.0, 4.0, -1.0]))
    loss.backward()
    assert loss.shape == ()
    assert_close(loss.item(), 5 / 3)
    assert_close(scores.grad, torch.tensor([2.0, -4.0, 0.0]) / 3)


# Calibration


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

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets.arrow_dataset import Column
from torch.testing import assert_close

from lorarlhf.recipe.sections import ObjectiveName, RewardConfig
from lorarlhf.training.objectives import OBJECTIVES, bradley_terry_loss, regression_loss


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


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_objective_of_the_recipe_is_in_the_table(name):
    """A batch of two rows goes through its collator and loss, its metrics through both reports."""
    objective, config = OBJECTIVES[name], RewardConfig(objective=name)
    rows = [dict.fromkeys(objective.sequences, [5, 6, 7][: n + 2]) | {"score": float(n)} for n in range(2)]
    batch = objective.collator(pad_token_id=0)(rows)
    sequences = len(objective.sequences) * len(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (sequences, 3)
    loss, numbers = objective.loss(torch.arange(float(sequences)), batch, config)
    assert loss.isfinite()
    assert set(numbers) <= set(objective.columns)
    scores = [torch.tensor([1.0, 3.0]) - place for place in range(len(objective.sequences))]
    data = Dataset.from_list(rows)
    metrics = {**objective.held_out(data, scores), **objective.baselines(lambda: data, data)}
    assert "held-out" in objective.result({**metrics, "eval_examples": 2})
    assert objective.report({**metrics, "examples": 2, "data": "d.jsonl"})[0][1].startswith("reward on 2 ")


@pytest.mark.parametrize(("name", "asked"), [("bradley_terry", [3, 9, 1, 4, 7, 2]), ("regression", [3, 1, 7])])
def test_scores_are_asked_for_row_by_row_and_rows_stay_on_the_disk(name, asked):
    rows = Dataset.from_dict(
        {"chosen_ids": [[3], [1], [7]], "rejected_ids": [[9], [4], [2]], "input_ids": [[3], [1], [7]]}
    )
    lazily = []

    def score(sequences):
        lazily.append(isinstance(sequences, Column))
        return torch.tensor([float(ids[0]) for ids in sequences])

    objective = OBJECTIVES[name]
    scores = objective.scores(rows, score)
    assert lazily == [True]
    assert [score.tolist() for score in scores] == [asked[n :: len(scores)] for n in range(len(objective.sequences))]


def test_numbers_of_a_batch_of_pairs():
    scores, batch = torch.tensor([1.0, 0.0, 3.0, 0.5, 2.0, -1.0]), {"tie": torch.tensor([False, False, True])}
    loss, numbers = OBJECTIVES["bradley_terry"].loss(scores, batch, RewardConfig())
    assert {name: values.tolist() for name, values in numbers.items()} == {
        "accuracy": [1.0, 0.0],  # (1, 0.5) and (0, 2); a tie has no winner
        "margin": [0.5, -2.0],
    }
    margins = torch.tensor([0.5, -2.0])
    expected = (
        -F.logsigmoid(margins).sum() - 0.5 * (F.logsigmoid(torch.tensor(4.0)) + F.logsigmoid(torch.tensor(-4.0)))
    ) / 3
    assert_close(loss, expected)
    of_ties = OBJECTIVES["bradley_terry"].loss(scores[:2], {"tie": torch.tensor([True])}, RewardConfig())[1]
    assert all(len(values) == 0 for values in of_ties.values())


def test_a_margin_counts_only_where_the_recipe_says_so():
    scores, batch = torch.tensor([1.0, 0.0]), {"margin": torch.tensor([1.0])}
    without, _ = OBJECTIVES["bradley_terry"].loss(scores, batch, RewardConfig())
    with_, _ = OBJECTIVES["bradley_terry"].loss(scores, batch, RewardConfig(use_margin=True))
    assert_close(without, -F.logsigmoid(torch.tensor(1.0)))
    assert_close(with_, torch.tensor(math.log(2)))

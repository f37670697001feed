"""How good a reward model is: numbers against numpy and arithmetic."""

import math

import numpy as np
import pytest
import torch
from demo_runs import small_recipe

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.evaluation.reward_model import longer_wins, preference_metrics, regression_metrics, score_tokens
from lorarlhf.intervals import wilson

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


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    recipe = small_recipe(tmp_path_factory.mktemp("reward_model"))
    backbone = load_backbone(recipe.model)
    torch.manual_seed(0)
    backbone.attach("reward", recipe.lora.for_role("reward"))
    return backbone


@pytest.mark.parametrize("token_budget", [1, 12, 1000])
def test_scores_keep_their_order_in_batches_of_any_size(backbone, token_budget):
    rows = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 2], [1, 70, 71], [1, 80, 81, 82]]
    with torch.no_grad():
        alone = [backbone.scores(TokenBatch.from_lists([row], [[]])).item() for row in rows]
    assert len(set(alone)) == len(rows)
    assert score_tokens(backbone, rows, token_budget=token_budget).tolist() == pytest.approx(alone, abs=1e-5)

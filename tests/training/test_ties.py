"""Ties in the Bradley-Terry loss, by hand; and on their way to it through the collator and the trainer."""

import json
import math

import pytest
import torch
from demo_runs import DEMO, small_recipe, write_jsonl

from lorarlhf.backbone.load import load_backbone
from lorarlhf.run import Run
from lorarlhf.stages.reward import train_reward
from lorarlhf.training.collators import PairCollator
from lorarlhf.training.objectives import bradley_terry_loss
from lorarlhf.training.reward import RewardModelTrainer


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(("margin", "smoothing"), [(None, 0.0), ([0.5, 3.0], 0.0), (None, 0.2), ([0.5, 3.0], 0.2)])
def test_a_tie_has_a_target_of_one_half_and_no_margin(margin, smoothing):
    chosen, rejected = torch.tensor([2.0, 1.5]), torch.tensor([0.5, -0.5])
    ties = torch.tensor([False, True])
    won = 1.5 - (margin[0] if margin else 0.0)
    expected = [
        -(1 - smoothing) * log_sigmoid(won) - smoothing * log_sigmoid(-won),
        -0.5 * log_sigmoid(2.0) - 0.5 * log_sigmoid(-2.0),
    ]
    margins = torch.tensor(margin) if margin else None
    loss = bradley_terry_loss(chosen, rejected, margins, smoothing, ties=ties)
    assert loss.item() == pytest.approx(sum(expected) / 2)


def test_a_tie_pulls_the_scores_together_from_both_sides():
    scores = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    bradley_terry_loss(scores, torch.zeros(3), ties=torch.tensor([True] * 3)).backward()
    pull = 1 / (1 + math.exp(-1)) - 0.5
    assert scores.grad.tolist() == pytest.approx([pull / 3, 0.0, -pull / 3])


def test_without_ties_the_loss_is_what_it_was():
    chosen, rejected = torch.tensor([2.0, 1.5]), torch.tensor([0.5, -0.5])
    none = bradley_terry_loss(chosen, rejected, ties=torch.tensor([False, False]))
    assert none.item() == bradley_terry_loss(chosen, rejected).item()


def test_the_collator_keeps_ties_and_margins():
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [3], "margin": 0.5, "tie": False}]
    rows += [{"chosen_ids": [1], "rejected_ids": [4], "margin": 0.0, "tie": True}]
    batch = PairCollator(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2], [1, 0], [3, 0], [4, 0]]
    assert (batch["tie"].tolist(), batch["margin"].tolist()) == ([False, True], [0.5, 0.0])
    assert "tie" not in PairCollator(pad_token_id=0)([{"chosen_ids": [1], "rejected_ids": [2]}])


@pytest.mark.parametrize("keep", [True, False])
def test_ties_reach_the_loss_if_the_recipe_keeps_them(tmp_path, monkeypatch, keep):
    rows = [json.loads(line) for line in (DEMO / "preferences.jsonl").read_text().splitlines()[:24]]
    path = write_jsonl(tmp_path / "ties.jsonl", [row | {"tie": i % 3 == 0} for i, row in enumerate(rows)])
    recipe = small_recipe(tmp_path, f"data.preferences={path}", f"data.ties={'keep' if keep else 'drop'}")
    seen = []

    def spy(trainer, model, inputs, *args, real=RewardModelTrainer.compute_loss, **kwargs):
        seen.append(inputs.get("tie"))
        return real(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(RewardModelTrainer, "compute_loss", spy)
    summary = train_reward(recipe, Run(tmp_path / "run"), backbone=load_backbone(recipe.model))
    if keep:
        assert any(ties.any() for ties in seen)
    else:
        assert all(ties is None for ties in seen)
    assert math.isfinite(summary["eval_accuracy"])

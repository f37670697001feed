"""Stages that compute a prompt once come to what they come to by computing it again for each row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from demo_runs import small_recipe
from torch.testing import assert_close

from lorarlhf.backbone import checks
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.packing import Packing
from lorarlhf.run import Run
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward


@pytest.fixture
def packings(monkeypatch) -> list[int]:
    """Rows of each batch that was packed."""
    made: list[int] = []

    def of(sequences, real=Packing.of):
        made.append(len(sequences))
        return real(sequences)

    monkeypatch.setattr(Packing, "of", of)
    return made


def trained(train, recipe, run: Run, role: str) -> tuple[dict, list[torch.Tensor]]:
    backbone = load_backbone(recipe.model)
    summary = train(recipe, run, backbone=backbone)
    return summary, [parameter.detach().clone() for parameter in backbone.role_parameters(role)]


def both_ways(train, recipe, runs: tuple[Run, Run], role: str, packings: list[int], monkeypatch) -> None:
    summary, packed = trained(train, recipe, runs[0], role)
    assert packings
    packings.clear()
    monkeypatch.setattr(checks, "packing_fault", lambda _: "a family that takes no mask")
    expected, one_by_one = trained(train, recipe, runs[1], role)
    assert not packings
    for ours, theirs in zip(packed, one_by_one, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    for name in ("eval_loss", "eval_accuracy", "eval_reward", "eval_kl"):
        assert (name in summary) == (name in expected)
        assert summary.get(name, 0.0) == pytest.approx(expected.get(name, 0.0), rel=1e-3, abs=1e-4)


def test_reward(tmp_path: Path, packings, monkeypatch):
    recipe = small_recipe(tmp_path)
    both_ways(train_reward, recipe, (Run(tmp_path / "a"), Run(tmp_path / "b")), "reward", packings, monkeypatch)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_rl(tmp_path: Path, packings, monkeypatch, estimator):
    sets = (f"ppo.advantage_estimator={estimator}", "ppo.num_generations=4", "ppo.num_ppo_epochs=2")
    recipe = small_recipe(tmp_path, *sets, "ppo.learning_rate=1e-4", "ppo.iterations=1")
    runs = Run(tmp_path / "a"), Run(tmp_path / "b")
    for run in runs:
        train_reward(recipe, run)
    packings.clear()
    both_ways(train_ppo, recipe, runs, "policy", packings, monkeypatch)

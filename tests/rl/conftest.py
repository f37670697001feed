"""Random batches of responses of every length that matters, with garbage where they are padded."""

from typing import NamedTuple

import pytest
import torch
from demo_runs import small_recipe
from torch import Tensor
from trainers import length_score, prompts, randomise

from lorarlhf.backbone.load import load_backbone
from lorarlhf.display import StageDisplay
from lorarlhf.rl.trainer import IterationDisplay, PPOTrainer


class Batch(NamedTuple):
    lengths: list[int]
    mask: Tensor  # bool [B, R]
    rewards: Tensor  # all others float32 [B, R], `scores` [B]
    values: Tensor
    old_values: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    scores: Tensor

    @property
    def width(self) -> int:
        return self.mask.shape[1]


@pytest.fixture(params=[0, 1, 2])
def batch(request) -> Batch:
    """Seven responses of up to six tokens: full, empty, one token, and others."""
    generator = torch.Generator().manual_seed(request.param)
    width = 6
    lengths = [width, 0, 1, width - 1, 3, 2, width]
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]

    def noise(scale: float = 1.0, shift: float = 0.0) -> Tensor:
        real = scale * torch.randn(mask.shape, generator=generator) + shift
        return torch.where(mask, real, 1e4 * torch.randn(mask.shape, generator=generator))

    old_logprobs = noise(0.5, -2.0)
    return Batch(
        lengths=lengths,
        mask=mask,
        rewards=noise(),
        values=noise(),
        old_values=noise(),
        logprobs=torch.where(mask, old_logprobs + noise(0.3), noise()),
        old_logprobs=old_logprobs,
        advantages=noise(2.0),
        scores=torch.randn(len(lengths), generator=generator),
    )


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(*sets, score=..., scale=...)`: a trainer on a fresh backbone.

    `scale` is how far the policy's adapter is from zero; the reference is a copy of it. The critic's never is at zero.
    """

    def make(*sets, score=length_score, scale=0.05):
        recipe = small_recipe(tmp_path, "ppo.eval_every=0", "ppo.save_every=0", *sets)
        backbone = load_backbone(recipe.model)
        torch.manual_seed(1)
        for role in ("policy", "critic", "reward"):
            backbone.attach(role, recipe.lora.for_role(role))
        randomise(backbone, scale, "policy")
        randomise(backbone, 0.05, "critic", "reward")
        backbone.copy_role("policy", "reference")
        backbone.train_roles("policy", "critic")
        train, test = (prompts(recipe, backbone.tokenizer, split) for split in ("train", "test"))
        folder = tmp_path / "ppo"
        display = IterationDisplay(StageDisplay("ppo", "iteration", {}, folder))
        return PPOTrainer(backbone, recipe.ppo, train, test, score, folder, recipe.seed, callbacks=[display])

    return make

"""A loop on a fresh backbone, and what its tests do with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from demo_runs import read_jsonl, small_recipe

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.tokenized import prompt_examples
from lorarlhf.display import StageDisplay
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import Rollout
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.algorithms import Algorithm, make_algorithm
from lorarlhf.rl.experience import Experience
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.loop import LoopParts, evaluate, train
from lorarlhf.rl.process_group import ProcessGroup
from lorarlhf.rl.score import score
from lorarlhf.rl.state import TrainingState
from lorarlhf.rl.update import minibatch_gradients
from lorarlhf.stages.ppo import make_parts


def length_score(rollout, prompts, trunk=None):
    return -rollout.sequences.response_lengths.float() / 4


@dataclasses.dataclass
class Loop:
    """The parts of a loop that a test may look at or change."""

    parts: LoopParts
    algorithm: Algorithm
    config: PPOConfig
    state: TrainingState
    learner: Learner

    @property
    def backbone(self) -> SharedBackbone:
        return self.learner.backbone

    @property
    def folder(self) -> Path:
        return self.parts.folder

    def train(self) -> None:
        train(self.parts, self.algorithm, self.config, self.state, self.learner)

    def evaluate(self, iteration: int = 0) -> dict[str, Any]:
        self.state.iteration = iteration
        evaluate(self.parts, self.state, self.learner)
        return rows_of(self)[-1]

    def change(self, **changes: Any) -> None:
        """Put others in the place of some parts."""
        if "reward" in changes and self.parts.held_out is not None:
            self.parts.held_out.reward = changes["reward"]
        self.parts = dataclasses.replace(self.parts, **changes)

    def configure(self, **changes: Any) -> None:
        self.config = self.config.model_copy(update=changes)
        self.algorithm.config = self.config

    def sample(self, iteration: int = 0) -> tuple[list[Any], Rollout]:
        config = self.config
        prompts = self.parts.prompts.batch(iteration, range(config.batch_size))
        uniforms = uniform_table(config.batch_size, config.response_length, "rollout", self.parts.seed, iteration)
        return prompts, self.parts.sampler.sample([example.ids for example in prompts], uniforms)

    def experience(self) -> Experience:
        """What the first iteration would make."""
        prompts, rollout = self.sample()
        scored = score(self.parts.passes, rollout, prompts, self.parts.reward, self.algorithm.has_critic)
        shaped = self.state.shaped(self.config, scored.scores, rollout.finished)
        return self.algorithm.experience(scored, shaped, self.state.kl_coef)

    def gradients(self, experience: Experience) -> tuple[dict[str, float], dict[str, list[torch.Tensor]]]:
        """Means a token of loss and statistics, and the gradients, of one minibatch with no step behind it."""
        self.backbone.train()
        tokens = experience.mask.sum()
        roles = self.algorithm.roles(0)
        budget = self.parts.update_budget
        sums, _ = minibatch_gradients(
            self.learner, self.algorithm, experience, tokens, roles, self.state.kl_coef, budget
        )
        self.padding = float(sums.pop("padding_tokens") / sums.pop("computed_tokens"))
        grads = {
            role: [p.grad.clone() for p in self.backbone.role_parameters(role) if p.grad is not None]
            for role in self.learner.parameters
        }
        return {name: (value / tokens).item() for name, value in sums.items()}, grads


def make_loop(folder: Path, *sets: str, reward: Any = length_score, scale: float = 0.05) -> Loop:
    """A loop on a fresh backbone. `scale` is how far the policy's adapter is from zero; the reference is a copy of it.

    The critic's never is at zero.
    """
    recipe = small_recipe(folder, "ppo.eval_every=0", "ppo.save_every=0", *sets)
    config = recipe.ppo
    algorithm = make_algorithm(config)
    torch.manual_seed(0)  # for the heads
    backbone = load_backbone(recipe.model)
    torch.manual_seed(1)
    for role in ("policy", "critic", "reward"):
        if role != "critic" or algorithm.has_critic:
            backbone.attach(role, recipe.lora.for_role(role))
    randomise(backbone, scale, "policy")
    randomise(backbone, 0.05, "critic", "reward")
    backbone.copy_role("policy", "reference")
    backbone.train_roles("policy", *(["critic"] if algorithm.has_critic else []))
    prompts, eval_prompts = (prompt_examples(recipe.data, backbone.tokenizer, split) for split in ("train", "test"))
    stage = folder / "ppo"
    learner = Learner(backbone, config, backbone.trained_roles, stage, ProcessGroup(backbone.device))
    display = StageDisplay("ppo", "iteration", {}, stage)

    def log(row: dict[str, Any], samples: Any = ()) -> None:
        display.log(row)

    parts = make_parts(backbone, config, prompts, eval_prompts[: config.eval_prompts], [], log, stage, recipe.seed)
    loop = Loop(parts, algorithm, config, TrainingState(config.kl_coef), learner)
    loop.change(reward=reward)
    return loop


@torch.no_grad()
def randomise(backbone, scale, *roles):
    for role in roles:
        for parameter in backbone.role_parameters(role):
            parameter.add_(scale * torch.randn_like(parameter))


def rows_of(loop: Loop) -> list[dict[str, Any]]:
    return read_jsonl(loop.folder / "metrics.jsonl")

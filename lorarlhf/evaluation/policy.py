"""What a policy does on held-out prompts."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.evaluation.reward_model import TOKEN_BUDGET
from lorarlhf.generation.sample import Rollout, response_texts, sample_responses
from lorarlhf.intervals import wilson
from lorarlhf.recipe.sections import PPOConfig, Role
from lorarlhf.rl.score import Passes
from lorarlhf.rl.trainer import RolloutScorer


@dataclass(frozen=True)
class Answers:
    """Responses of one role to N prompts.

    Attributes:
        texts: N responses without special tokens.
        scores: [N] the reward of each; None where nothing gives one.
        kl: nats a response from the reference, estimated from these samples.
        entropy: nats a token.
        response_length: tokens, the mean.
        finished: share of responses that ended themselves.
    """

    texts: list[str]
    scores: Tensor | None
    kl: float
    entropy: float
    response_length: float
    finished: float

    @property
    def reward(self) -> float | None:
        """The mean score."""
        return None if self.scores is None else self.scores.mean().item()


@torch.no_grad()
def answer(
    backbone: SharedBackbone,
    role: Role,
    prompts: Sequence[PromptExample],
    config: PPOConfig,
    seed: int,
    score: RolloutScorer | None,
    advance: Callable[[int], None] | None = None,
) -> Answers:
    """Sample one response a prompt as `role`, as many at a time as an iteration of PPO does.

    Args:
        config: gives `response_length`, `temperature` and `batch_size`.
        score: the reward [B] of each response of a rollout.
        advance: called with the number of prompts just answered.
    """
    backbone.eval()
    passes = Passes(backbone, config.temperature, TOKEN_BUDGET)
    budget = TokenBudget("evaluation", sys.maxsize)
    texts: list[str] = []
    found: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, len(prompts), config.batch_size):
        batch = prompts[start : start + config.batch_size]
        rollout = _sample(backbone, role, batch, config, seed + start, budget)
        own, entropy = passes.logprobs(role, rollout.sequences)
        reference = own if role == "reference" else passes.logprobs("reference", rollout.sequences)[0]
        texts += response_texts(backbone, rollout)
        found["kl"].append((own - reference).sum(1))
        found["entropy"].append(entropy.sum(1))
        found["length"].append(rollout.sequences.response_lengths)
        found["finished"].append(rollout.finished)
        if score:
            found["scores"].append(score(rollout, batch, None))
        if advance:
            advance(len(batch))
    each = {name: torch.cat(parts).float().cpu() for name, parts in found.items()}
    return Answers(
        texts=texts,
        scores=each.get("scores"),
        kl=each["kl"].mean().item(),
        entropy=(each["entropy"].sum() / each["length"].sum()).item(),
        response_length=each["length"].mean().item(),
        finished=each["finished"].mean().item(),
    )


def _sample(
    backbone: SharedBackbone,
    role: Role,
    batch: Sequence[PromptExample],
    config: PPOConfig,
    seed: int,
    budget: TokenBudget,
) -> Rollout:
    prompts, limit = [example.ids for example in batch], config.response_length
    longest = max(map(len, prompts)) + limit

    def attempt(tokens: int) -> Rollout:
        generator = torch.Generator(backbone.device).manual_seed(seed)
        return sample_responses(backbone, prompts, limit, config.temperature, generator, role, tokens)

    return budget.run(attempt, most=len(batch) * longest, least=longest)


def policy_metrics(before: Answers, after: Answers) -> dict[str, Any]:
    """The reference (`before`) and the tuned policy (`after`) side by side; with rewards, how often the latter wins."""
    metrics: dict[str, Any] = {"before": _metrics(before), "after": {**_metrics(after), "kl": after.kl}}
    if before.scores is not None and after.scores is not None:
        won = wilson(win_rate(after.scores.tolist(), before.scores.tolist()), len(after.scores))
        metrics |= {"win_rate": won.value, "win_rate_interval": [won.low, won.high]}
    return metrics


def _metrics(answers: Answers) -> dict[str, float | None]:
    return {
        "reward": answers.reward,
        "entropy": answers.entropy,
        "response_length": answers.response_length,
        "finished": answers.finished,
    }


def win_rate(tuned: Sequence[float], base: Sequence[float]) -> float:
    """Share of prompts on which `tuned` scores higher; ties count half."""
    return sum((t > b) + 0.5 * (t == b) for t, b in zip(tuned, base, strict=True)) / len(tuned)

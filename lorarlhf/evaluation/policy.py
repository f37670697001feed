"""What a policy does on held-out prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorarlhf.backbone.budget import tokens_a_pass
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import ResponseSampler, Rollout, response_texts
from lorarlhf.intervals import wilson
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.score import RolloutScorer, ScoringPasses


@dataclass(frozen=True)
class Answers:
    """Responses of one role to N prompts.

    Attributes:
        texts: N responses without special tokens.
        scores: [N] the reward of each; None where nothing gives one.
        kls: [N] log-probability of each response less the reference's, in nats: their mean estimates the KL.
        entropy: nats a token.
        response_length: tokens, the mean.
        finished: share of responses that ended themselves.
    """

    texts: list[str]
    scores: Tensor | None
    kls: Tensor
    entropy: float
    response_length: float
    finished: float

    @property
    def kl(self) -> float:
        """Nats a response from the reference."""
        return self.kls.mean().item()

    @property
    def reward(self) -> float | None:
        """The mean score."""
        return None if self.scores is None else self.scores.mean().item()


@dataclass(frozen=True)
class Responses:
    """Responses to a batch of prompts, with what the model that drew them says of their tokens: [B, R] each."""

    rollout: Rollout
    logprobs: Tensor
    entropy: Tensor

    def to(self, device: torch.device) -> Responses:
        """The same on another device."""
        return Responses(self.rollout.to(device), self.logprobs.to(device), self.entropy.to(device))


def answer(
    backbone: SharedBackbone,
    role: str,
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
    responses = respond(backbone, role, prompts, config, seed)
    return measure(backbone, responses, prompts, config, score, advance, by_reference=role == "reference")


@torch.no_grad()
def respond(
    backbone: SharedBackbone, role: str, prompts: Sequence[PromptExample], config: PPOConfig, seed: int
) -> Iterator[Responses]:
    """The first half of `answer`, batch by batch."""
    passes = ScoringPasses(backbone, config.temperature, tokens_a_pass(backbone.device))
    sampler = ResponseSampler(backbone, config.response_length, config.temperature, "evaluation")
    uniforms = uniform_table(len(prompts), config.response_length, "evaluation", seed)
    for start in range(0, len(prompts), config.batch_size):
        rows = slice(start, start + config.batch_size)
        rollout = sampler.sample([example.ids for example in prompts[rows]], uniforms[rows], role)
        yield Responses(rollout, *passes.logprobs(role, rollout.sequences))


@torch.no_grad()
def measure(
    backbone: SharedBackbone,
    responses: Iterable[Responses],
    prompts: Sequence[PromptExample],
    config: PPOConfig,
    score: RolloutScorer | None,
    advance: Callable[[int], None] | None = None,
    by_reference: bool = False,
) -> Answers:
    """The second half: what reference and reward say of responses, which may be another model's.

    Args:
        by_reference: the reference itself has drawn them.
    """
    passes = ScoringPasses(backbone, config.temperature, tokens_a_pass(backbone.device))
    texts: list[str] = []
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for batch in responses:
        asked = prompts[len(texts) : len(texts) + len(batch.logprobs)]
        batch = batch.to(backbone.device)
        rollout = batch.rollout
        reference = batch.logprobs if by_reference else passes.logprobs("reference", rollout.sequences)[0]
        texts += response_texts(backbone, rollout)
        parts["kl"].append((batch.logprobs - reference).sum(1))
        parts["entropy"].append(batch.entropy.sum(1))
        parts["length"].append(rollout.sequences.response_lengths)
        parts["finished"].append(rollout.finished)
        if score:
            parts["scores"].append(score(rollout, asked, None))
        if advance:
            advance(len(asked))
    each = {name: torch.cat(columns).float().cpu() for name, columns in parts.items()}
    return Answers(
        texts=texts,
        scores=each.get("scores"),
        kls=each["kl"],
        entropy=(each["entropy"].sum() / each["length"].sum()).item(),
        response_length=each["length"].mean().item(),
        finished=each["finished"].mean().item(),
    )


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

"""GRPO: how a response does within its group, in standard deviations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lorarlhf.rl.advantages import standard_deviation
from lorarlhf.rl.algorithms.algorithm import Algorithm, spread_over_tokens
from lorarlhf.rl.experience import Experience, ScoredRollout

EPSILON = 1e-4  # added to the standard deviation, as TRL does


class GRPO(Algorithm):
    """Group relative policy optimisation (Shao et al. 2024, "DeepSeekMath", section 4.1).

    The advantage of each token is the response's score less the mean of its group, over the group's standard deviation;
    `ppo.scale_rewards: none` leaves that out (Dr. GRPO, Liu et al. 2025), since it makes prompts whose responses are
    nearly alike count the most. The KL penalty (k3) is part of the loss. As everywhere here the loss is a mean over the
    minibatch's tokens, not one over each response first.
    """

    def experience(self, scored: ScoredRollout, scores: Tensor, kl_coef: float) -> Experience:
        rewards = scores - self.kl_penalty(scored, kl_coef).sum(1)
        advantages = within_group(rewards, self.config.generations, self.config.scale_rewards)
        return Experience(
            sequences=scored.rollout.sequences,
            logprobs=scored.logprobs,
            advantages=spread_over_tokens(advantages, scored.mask),
            ref_logprobs=self.reference_for_loss(scored),
        )


def within_group(rewards: Tensor, group: int, scale: Literal["group", "batch", "none"]) -> Tensor:
    """[B] each reward less its group's mean, over a standard deviation.

    Args:
        rewards: [B], the `group` responses to one prompt next to each other.
        scale: divide by the deviation of the group, of the batch (over all processes), or not at all.
    """
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    if scale == "group":
        centred = centred / (grouped.std(1, keepdim=True) + EPSILON)
    elif scale == "batch":
        centred = centred / (standard_deviation(rewards, torch.ones_like(rewards, dtype=torch.bool)) + EPSILON)
    return centred.flatten()

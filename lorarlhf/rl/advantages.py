"""Rewards per token, generalised advantage estimation and whitening.

Shapes: B responses, R the padded response length. `mask` [B, R] is True on response tokens: a prefix of each row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(scores: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """Reward of each token: minus the KL penalty, plus the score on the last token (Ziegler et al. 2019, eq. 2).

    Args:
        scores: [B] score of each whole response.
        penalty: [B, R] coefficient times KL estimate of each token.
        mask: [B, R] response tokens.

    Returns:
        [B, R] rewards, 0 at padding. A response of length 0 receives nothing.
    """
    rewards = torch.where(mask, -penalty, 0.0)
    lengths = mask.sum(1)
    rows = torch.nonzero(lengths).squeeze(1)
    rewards[rows, lengths[rows] - 1] += scores[rows]
    return rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16); the value after the last token is 0.

    Args:
        rewards: [B, R].
        values: [B, R] value of the state in which each token was chosen.
        mask: [B, R] response tokens.

    Returns:
        advantages and returns (advantages + values), both [B, R] and 0 at padding.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    advantage = next_value = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else rewards.sum(1)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # At padding everything is 0, so the recursion starts afresh at each row's last token.
        advantage = delta + gamma * lam * advantage
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the tokens of the batch and, unless told not to, shift to mean 0.

    With `torch.distributed` running, mean and variance are those of all processes' tokens together.

    Returns:
        [B, R], 0 at padding. The variance is the biased one; 1e-8 is added to it.
    """
    x, mean, squares, count = _deviations(x, mask)
    whitened = x * torch.rsqrt(squares / count.clamp(min=1) + 1e-8)
    return whitened if shift_mean else torch.where(mask, whitened + mean, 0.0)


def standard_deviation(x: Tensor, mask: Tensor) -> Tensor:
    """Scalar, unbiased, over the masked numbers of all processes; 0 of a single one."""
    _, _, squares, count = _deviations(x, mask)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def _deviations(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x less its mean, 0 where masked out; and of all processes the mean, the sum of that squared, and the count."""
    x = torch.where(mask, x, 0.0)
    count, total = _sum_over_processes(torch.stack([mask.sum().to(x.dtype), x.sum()]))
    mean = total / count.clamp(min=1)
    centred = torch.where(mask, x - mean, 0.0)
    (squares,) = _sum_over_processes(centred.square().sum().unsqueeze(0))
    return centred, mean, squares, count


def _sum_over_processes(x: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x

"""The clipped losses of PPO (Schulman et al. 2017), token by token.

They return a loss for each token, not a mean: the trainer divides the sum by the tokens of the whole minibatch, so
that micro-batches of any size give the same gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The negated clipped surrogate objective (eq. 7), with ratio = exp(logprobs - old_logprobs).

    Args:
        logprobs, old_logprobs, advantages, mask: [B, R]; `mask` is True on response tokens.

    Returns:
        losses [B, R], 0 at padding, and a mask [B, R] of the tokens whose ratio was clipped.
    """
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    losses = torch.where(mask, torch.maximum(unclipped, clipped), 0.0)
    return losses, (clipped > unclipped) & mask


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of the value, clipped to stay near the old value, whichever is worse.

    The clipping is that of OpenAI's baselines (Huang et al. 2022, detail 9).

    Returns:
        losses [B, R], 0 at padding, and a mask [B, R] of the tokens whose value was clipped.
    """
    clipped_values = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    losses = torch.where(mask, 0.5 * torch.maximum(unclipped, clipped), 0.0)
    return losses, (clipped > unclipped) & mask

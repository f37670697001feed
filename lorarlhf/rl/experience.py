"""A rollout with everything the update needs of it. Pure functions of tensors.

Shapes: B responses, R the padded response length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.trunk import TrunkStates
from lorarlhf.rl.advantages import generalized_advantages, token_rewards, whiten
from lorarlhf.rl.kl import KLEstimator, kl_estimate


@dataclass(frozen=True)
class Experience:
    """Sampled responses and what is fixed about them while the policy is updated.

    Attributes:
        sequences: B prompts and responses.
        logprobs: [B, R] of the policy that sampled.
        values: [B, R] of the critic before the update.
        advantages, returns: [B, R], advantages whitened.
        kl: [B, R] estimate of KL(policy, reference) at each token.
        trunk: what the critic goes on from, if not from the tokens.
    """

    sequences: TokenBatch
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    trunk: TrunkStates | None = None

    @property
    def mask(self) -> Tensor:
        """[B, R] True on response tokens."""
        return self.sequences.response_mask

    def select(self, rows: Tensor) -> Experience:
        """Some of the rows, cut to the longest of them."""
        sequences = self.sequences.select(rows)
        width = sequences.response_mask.shape[1]
        logprobs, values, advantages, returns, kl = (
            x[rows, :width] for x in (self.logprobs, self.values, self.advantages, self.returns, self.kl)
        )
        trunk = self.trunk.select(rows, sequences.tokens.shape[1]) if self.trunk else None
        return Experience(sequences, logprobs, values, advantages, returns, kl, trunk)


def build_experience(
    sequences: TokenBatch,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    scores: Tensor,
    *,
    kl_coef: float,
    kl_estimator: KLEstimator,
    gamma: float,
    lam: float,
    whiten_rewards: bool,
    trunk: TrunkStates | None = None,
) -> Experience:
    """Rewards, advantages and returns of a scored rollout.

    Args:
        logprobs, ref_logprobs, values: [B, R].
        scores: [B] the score of each whole response.
    """
    mask = sequences.response_mask
    kl = torch.where(mask, kl_estimate(logprobs, ref_logprobs, kl_estimator), 0.0)
    rewards = token_rewards(scores, kl, mask, kl_coef)
    if whiten_rewards:  # keeps the mean, as rewards have a meaningful sign (Huang et al. 2024, detail 8)
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    return Experience(sequences, logprobs, values, whiten(advantages, mask), returns, kl, trunk)

"""What all algorithms have in common: the clipped surrogate of the policy, and where the KL penalty goes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.experience import Experience, ScoredRollout
from lorarlhf.rl.kl import kl_estimate
from lorarlhf.rl.losses import policy_loss


@dataclass(frozen=True)
class LossTerm:
    """What one role's forward pass gives for a micro-batch.

    Attributes:
        loss: sum over the micro-batch's tokens; whoever calls divides by the tokens of the whole minibatch.
        sums: statistics, summed over tokens likewise.
        gap: greatest distance of log-probabilities from those of the experience.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    gap: float = 0.0


class Algorithm(ABC):
    """An advantage estimator and the losses that go with it.

    Class attributes say what the parts around it must know: whether there is a critic, how many responses to a prompt
    it asks for by default, and whether the KL penalty is part of the reward or of the loss unless `ppo.kl_in` says.
    """

    has_critic: ClassVar[bool] = False

    def __init__(self, config: PPOConfig) -> None:
        self.config = config

    def roles(self, iteration: int) -> tuple[str, ...]:
        """The roles that learn in an iteration."""
        return ("policy",)

    @abstractmethod
    def experience(self, scored: ScoredRollout, scores: Tensor, kl_coef: float) -> Experience:
        """Advantages from a scored rollout.

        Args:
            scores: [B] what each whole response is worth: its raw score normalised, clipped and penalised.
            kl_coef: weight of the KL penalty in this iteration.
        """

    def losses(
        self, backbone: SharedBackbone, micro: Experience, kl_coef: float, roles: tuple[str, ...]
    ) -> Iterator[LossTerm]:
        """The loss of each role that learns, one after the other.

        A generator: each term is computed when the one before has gone backward, so that only one role's activations
        are in memory.
        """
        if "policy" in roles:
            yield self.policy_term(backbone, micro, kl_coef)

    def kl_penalty(self, scored: ScoredRollout, kl_coef: float) -> Tensor:
        """[B, R] what each token pays for leaving the reference; 0 where the loss takes care of that."""
        if self.config.kl_is_in_loss:
            return torch.zeros_like(scored.logprobs)
        kl = kl_estimate(scored.logprobs, scored.ref_logprobs, self.config.kl_estimator)
        return torch.where(scored.mask, kl_coef * kl, 0.0)

    def policy_term(self, backbone: SharedBackbone, micro: Experience, kl_coef: float) -> LossTerm:
        """Clipped surrogate, less the entropy bonus, plus the KL penalty where it is part of the loss."""
        config, mask = self.config, micro.mask
        logprobs, entropy = backbone.logprobs(
            "policy", micro.sequences, config.temperature, with_entropy=config.entropy_coef > 0
        )
        losses, clipped = policy_loss(logprobs, micro.logprobs, micro.advantages, mask, config.cliprange)
        loss = losses.sum() - config.entropy_coef * entropy.sum()
        sums = {"policy_loss": losses.sum(), "clip_fraction": clipped.sum()}
        if micro.ref_logprobs is not None:
            # k3, as in Shao et al. 2024, eq. 4: its gradient is that of the KL, which the gradient of k1 is not.
            kl = torch.where(mask, kl_estimate(logprobs, micro.ref_logprobs, "k3"), 0.0).sum()
            loss = loss + kl_coef * kl
            sums["kl_loss"] = kl
        with torch.no_grad():  # of the policy that sampled to the one now; k3 is never negative
            sums["approx_kl"] = kl_estimate(micro.logprobs, logprobs, "k3")[mask].sum()
            gap = (logprobs - micro.logprobs)[mask].abs().max().item() if mask.any() else 0.0
        return LossTerm(loss, sums, gap)

    def reference_for_loss(self, scored: ScoredRollout) -> Tensor | None:
        """[B, R] the reference's log-probabilities if the loss needs them."""
        return scored.ref_logprobs if self.config.kl_is_in_loss else None


def spread_over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B] advantages of whole responses as [B, R]: every token of a response did as well as the response."""
    return torch.where(mask, advantages.unsqueeze(1), 0.0)

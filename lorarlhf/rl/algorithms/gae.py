"""PPO: a critic says what was to be expected, token by token."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.rl.advantages import generalized_advantages, token_rewards, whiten
from lorarlhf.rl.algorithms.algorithm import Algorithm, LossTerm
from lorarlhf.rl.experience import Experience, ScoredRollout
from lorarlhf.rl.losses import value_loss


class GAE(Algorithm):
    """Proximal policy optimisation with generalised advantages (Schulman et al. 2016, 2017; Ziegler et al. 2019).

    The score lands on the last token and the KL penalty on every token; the advantage of a token is the discounted sum
    of the critic's surprises from there on, whitened over the batch. Policy and critic learn side by side.
    """

    has_critic = True

    def roles(self, iteration: int) -> tuple[str, ...]:
        """The critic alone at first, where the recipe wants it warmed up."""
        return ("critic",) if iteration < self.config.critic_only_iterations else ("policy", "critic")

    def experience(self, scored: ScoredRollout, scores: Tensor, kl_coef: float) -> Experience:
        assert scored.values is not None
        mask = scored.mask
        rewards = token_rewards(scores, self.kl_penalty(scored, kl_coef), mask)
        if self.config.whiten_rewards:  # keeps the mean: rewards have a meaningful sign (Huang et al. 2024, detail 8)
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(rewards, scored.values, mask, self.config.gamma, self.config.lam)
        return Experience(
            sequences=scored.rollout.sequences,
            logprobs=scored.logprobs,
            advantages=whiten(advantages, mask),
            ref_logprobs=self.reference_for_loss(scored),
            values=scored.values,
            returns=returns,
            trunk=scored.trunk,
        )

    def losses(
        self, backbone: SharedBackbone, micro: Experience, kl_coef: float, roles: tuple[str, ...]
    ) -> Iterator[LossTerm]:
        yield from super().losses(backbone, micro, kl_coef, roles)
        yield self.value_term(backbone, micro)

    def value_term(self, backbone: SharedBackbone, micro: Experience) -> LossTerm:
        """Clipped squared error of the critic, times `vf_coef`."""
        assert micro.values is not None
        assert micro.returns is not None
        values = backbone.values(micro.sequences, micro.trunk)
        losses, clipped = value_loss(values, micro.values, micro.returns, micro.mask, self.config.cliprange_value)
        sums = {"value_loss": losses.sum(), "value_clip_fraction": clipped.sum()}
        return LossTerm(self.config.vf_coef * losses.sum(), sums)

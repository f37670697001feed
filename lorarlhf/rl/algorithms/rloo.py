"""RLOO: the other responses to the same prompt say what was to be expected."""

from __future__ import annotations

from torch import Tensor

from lorarlhf.rl.algorithms.algorithm import Algorithm, spread_over_tokens
from lorarlhf.rl.experience import Experience, ScoredRollout


class RLOO(Algorithm):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, "Back to Basics", eq. 8).

    A whole response is one action. Its reward is the score less the KL penalty of all its tokens, and its advantage is
    what that reward is above the mean reward of the other k - 1 responses to the prompt, so there is no critic.
    """

    def experience(self, scored: ScoredRollout, scores: Tensor, kl_coef: float) -> Experience:
        rewards = scores - self.kl_penalty(scored, kl_coef).sum(1)
        advantages = above_the_others(rewards, self.config.generations)
        return Experience(
            sequences=scored.rollout.sequences,
            logprobs=scored.logprobs,
            advantages=spread_over_tokens(advantages, scored.mask),
            ref_logprobs=self.reference_for_loss(scored),
        )


def above_the_others(rewards: Tensor, group: int) -> Tensor:
    """[B] each reward less the mean of the others of its group.

    Args:
        rewards: [B], the `group` responses to one prompt next to each other; group at least 2.
    """
    grouped = rewards.view(-1, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()

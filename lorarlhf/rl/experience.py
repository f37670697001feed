"""What is known of an iteration's responses: first scored, then with advantages.

Shapes: B responses, R the padded response length.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.trunk import TrunkStates
from lorarlhf.generation.sample import Rollout


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout and what each role says of it.

    Attributes:
        rollout: B prompts and responses.
        scores: [B] raw score of each response, before normalisation and penalties.
        logprobs, entropy: [B, R] of the policy that sampled.
        ref_logprobs: [B, R] of the reference.
        values: [B, R] of the critic; None where the algorithm has none.
        trunk: what the critic goes on from, if not from the tokens.
    """

    rollout: Rollout
    scores: Tensor
    logprobs: Tensor
    entropy: Tensor
    ref_logprobs: Tensor
    values: Tensor | None = None
    trunk: TrunkStates | None = None

    @property
    def mask(self) -> Tensor:
        """[B, R] True on response tokens."""
        return self.rollout.sequences.response_mask


@dataclass(frozen=True)
class Experience:
    """Sampled responses and what is fixed about them while the policy is updated.

    Attributes:
        sequences: B prompts and responses.
        logprobs: [B, R] of the policy that sampled.
        advantages: [B, R].
        ref_logprobs: [B, R] of the reference, where the KL penalty is part of the loss; else None.
        values, returns: [B, R] of the critic before the update, and what it should have said; None without a critic.
        trunk: what the critic goes on from, if not from the tokens.
    """

    sequences: TokenBatch
    logprobs: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    trunk: TrunkStates | None = None

    @property
    def mask(self) -> Tensor:
        """[B, R] True on response tokens."""
        return self.sequences.response_mask

    def select(self, rows: Tensor) -> Experience:
        """Some of the rows, cut to the longest of them."""
        sequences = self.sequences.select(rows)
        width = sequences.response_mask.shape[1]

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows, :width]

        return Experience(
            sequences=sequences,
            logprobs=self.logprobs[rows, :width],
            advantages=self.advantages[rows, :width],
            ref_logprobs=cut(self.ref_logprobs),
            values=cut(self.values),
            returns=cut(self.returns),
            trunk=self.trunk.select(rows, sequences.tokens.shape[1]) if self.trunk else None,
        )

"""The forward passes that score a rollout: reference, reward model, policy and critic, one after the other."""

from __future__ import annotations

from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.budget import TokenBudget, in_micro_batches
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.backbone.trunk import TrunkStates, recorded_input
from lorarlhf.recipe.sections import Role


class Passes:
    """Forward passes over whole rollouts, in micro-batches, without gradients.

    Args:
        temperature: of the policy; log-probabilities are those of what was sampled.
        tokens: of a micro-batch.
    """

    def __init__(self, backbone: SharedBackbone, temperature: float, tokens: int) -> None:
        self.backbone = backbone
        self.temperature = temperature
        self.budget = TokenBudget("scoring", tokens)

    def logprobs(self, role: Role, sequences: TokenBatch) -> tuple[Tensor, Tensor]:
        """[B, R] log-probability of each response token, and entropy."""
        width = sequences.response_mask.shape[1]
        logprobs, entropy = in_micro_batches(
            sequences,
            self.budget,
            lambda micro, _: self.backbone.logprobs(role, micro, self.temperature),
            (width, width),
        )
        return logprobs, entropy

    def reference(self, sequences: TokenBatch) -> tuple[Tensor, TrunkStates | None]:
        """[B, R] the reference's log-probabilities, and what reward model and critic can go on from.

        Below the lowest layer that either of them adapts, both compute what the bare base model does. Where that is
        the reference, its pass is the only one.
        """
        backbone = self.backbone
        layer = min(backbone.first_layer("reward"), backbone.first_layer("critic"))
        length, width = sequences.tokens.shape[1], sequences.response_mask.shape[1]
        if layer == 0:
            (logprobs,) = in_micro_batches(sequences, self.budget, lambda micro, _: (self._reference(micro),), (width,))
            return logprobs, None
        layer = min(layer, len(backbone.layers) - 1)  # above the last one there is nothing to go on to
        bare = "reference" not in backbone.roles

        def compute(micro: TokenBatch, _: Tensor) -> tuple[Tensor, Tensor]:
            with recorded_input(backbone.layers[layer]) as recorded:
                logprobs = self._reference(micro)
            return logprobs, recorded[0] if bare else backbone.trunk_states(micro, layer).states

        logprobs, states = in_micro_batches(sequences, self.budget, compute, (width, length))
        return logprobs, TrunkStates(states, layer)

    def _reference(self, micro: TokenBatch) -> Tensor:
        return self.backbone.logprobs("reference", micro, self.temperature, with_entropy=False)[0]

    def values(self, sequences: TokenBatch, trunk: TrunkStates | None) -> Tensor:
        """[B, R] of the critic."""
        (values,) = in_micro_batches(
            sequences,
            self.budget,
            lambda micro, rows: (self.backbone.values(micro, below(trunk, rows, micro)),),
            (sequences.response_mask.shape[1],),
        )
        return values

    def scores(self, sequences: TokenBatch, trunk: TrunkStates | None = None) -> Tensor:
        """[B] of the reward model."""
        (scores,) = in_micro_batches(
            sequences,
            self.budget,
            lambda micro, rows: (self.backbone.scores(micro, below(trunk, rows, micro)).unsqueeze(1),),
            (1,),
        )
        return scores.squeeze(1)


def below(trunk: TrunkStates | None, rows: Tensor, micro: TokenBatch) -> TrunkStates | None:
    """The states of some of the rows."""
    return trunk.select(rows, micro.tokens.shape[1]) if trunk else None

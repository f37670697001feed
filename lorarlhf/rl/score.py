"""Scoring a rollout: what the reward, the reference and the critic say of it, one role after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch, with_end
from lorarlhf.backbone.budget import TokenBudget, in_micro_batches
from lorarlhf.backbone.finite import NotFinite
from lorarlhf.backbone.packing import unpacked
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.backbone.trunk import TrunkStates, recorded_input
from lorarlhf.data.rows import request_text
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.generation.sample import Rollout, response_texts
from lorarlhf.rl.experience import ScoredRollout
from lorarlhf.rl.rewards import WeightedReward, function_scores

RolloutScorer = Callable[[Rollout, Sequence[PromptExample], TrunkStates | None], Tensor]


@torch.no_grad()
def score(
    passes: ScoringPasses,
    rollout: Rollout,
    prompts: Sequence[PromptExample],
    reward: RolloutScorer,
    with_values: bool = False,
    recompute_logprobs: bool = True,
) -> ScoredRollout:
    """What every role says of a rollout.

    Args:
        reward: raw score [B] of each response, given the trunk's states if they are known.
        with_values: ask the critic.
        recompute_logprobs: take the policy's log-probabilities from a pass like those of the update, so that the ratio
            starts at exactly 1, instead of the ones recorded while sampling.
    """
    sequences = rollout.sequences
    # First the reference: where it is the bare base, its pass leaves behind what reward model and critic go on from.
    ref_logprobs, trunk = passes.reference(sequences)
    scores = reward(rollout, prompts, trunk)
    logprobs, entropy = rollout.logprobs, rollout.entropy
    if recompute_logprobs:
        logprobs, entropy = passes.logprobs("policy", sequences)
    values = passes.values(sequences, trunk) if with_values else None
    return ScoredRollout(rollout, scores, logprobs, entropy, ref_logprobs, values, trunk if with_values else None)


def not_finite(scored: ScoredRollout) -> NotFinite | None:
    """What of a scored rollout is NaN or infinite; None if nothing is."""
    parts = {
        ("the log-probabilities", "policy"): scored.logprobs,
        ("the log-probabilities", "reference"): scored.ref_logprobs,
        ("the score", "reward"): scored.scores.unsqueeze(1),
        ("the values", "critic"): scored.values,
    }
    for (what, role), numbers in parts.items():  # padding is 0
        if numbers is not None and (bad := ~numbers.isfinite().all(1)).any():
            return NotFinite(what, role, scored.rollout.sequences.select(bad.nonzero().squeeze(1)).lists())
    return None


def response_scorer(
    passes: ScoringPasses,
    reward_model_weight: float,
    functions: Sequence[WeightedReward],
    timeout: float | None = None,
) -> RolloutScorer:
    """Raw score [B] of each response: the reward model's, where the backbone has one, weighted, plus the functions'.

    Args:
        timeout: seconds that a function may take for a batch.
    """
    backbone = passes.backbone

    @torch.no_grad()
    def reward(rollout: Rollout, prompts: Sequence[PromptExample], trunk: TrunkStates | None = None) -> Tensor:
        total = torch.zeros(len(prompts), device=rollout.sequences.tokens.device)
        if "reward" in backbone.roles and reward_model_weight:
            total += reward_model_weight * passes.scores(with_end(rollout.sequences, backbone.end_id), trunk)
        if functions:
            texts = response_texts(backbone, rollout)
            requests = [request_text(example.prompt) for example in prompts]
            total += function_scores(functions, requests, texts, _columns(prompts), timeout).to(total.device)
        return total

    return reward


def _columns(prompts: Sequence[PromptExample]) -> dict[str, list[Any]]:
    """The columns of rows side by side; a row that lacks one has None there."""
    names = dict.fromkeys(name for example in prompts for name in example.columns)
    return {name: [example.columns.get(name) for example in prompts] for name in names}


class ScoringPasses:
    """Forward passes over whole rollouts, in micro-batches, without gradients.

    Args:
        temperature: of the policy; log-probabilities are those of what was sampled.
        tokens: of a micro-batch.
    """

    def __init__(self, backbone: SharedBackbone, temperature: float, tokens: int) -> None:
        self.backbone = backbone
        self.temperature = temperature
        self.budget = TokenBudget("scoring", tokens)

    def logprobs(self, role: str, sequences: TokenBatch) -> tuple[Tensor, Tensor]:
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
        the reference, its pass is the only one. It reads each response with an end, as the reward model does: what it
        says of the last token that was drawn stands in the state before it, which is also the last that a critic reads.
        """
        backbone, read = self.backbone, with_end(sequences, self.backbone.end_id)
        layer = min(backbone.first_layer("reward"), backbone.first_layer("critic"))
        length, width = sequences.tokens.shape[1], sequences.response_mask.shape[1]
        if layer == 0 or not {"reward", "critic"} & backbone.roles:
            (logprobs,) = in_micro_batches(
                sequences, self.budget, lambda micro, _: (self._reference(micro, micro),), (width,)
            )
            return logprobs, None
        layer = min(layer, len(backbone.layers) - 1)  # above the last one there is nothing to go on to
        bare = "reference" not in backbone.roles

        def compute(micro: TokenBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
            with recorded_input(backbone.layers[layer]) as recorded:
                logprobs = self._reference(micro, sequences.select(rows))
            return logprobs, unpacked(recorded[0], micro) if bare else backbone.trunk_states(micro, layer).states

        logprobs, states = in_micro_batches(read, self.budget, compute, (width, length))
        return logprobs, TrunkStates(states, layer)

    def _reference(self, micro: TokenBatch, drawn: TokenBatch) -> Tensor:
        return self.backbone.logprobs("reference", micro, self.temperature, with_entropy=False, drawn=drawn)[0]

    def values(self, sequences: TokenBatch, trunk: TrunkStates | None) -> Tensor:
        """[B, R] of the critic."""
        (values,) = in_micro_batches(
            sequences,
            self.budget,
            lambda micro, rows: (self.backbone.values(micro, _trunk_rows(trunk, rows, micro)),),
            (sequences.response_mask.shape[1],),
        )
        return values

    def scores(self, sequences: TokenBatch, trunk: TrunkStates | None = None) -> Tensor:
        """[B] of the reward model."""
        (scores,) = in_micro_batches(
            sequences,
            self.budget,
            lambda micro, rows: (self.backbone.scores(micro, _trunk_rows(trunk, rows, micro)).unsqueeze(1),),
            (1,),
        )
        return scores.squeeze(1)


def _trunk_rows(trunk: TrunkStates | None, rows: Tensor, micro: TokenBatch) -> TrunkStates | None:
    """The states of some of the rows."""
    return trunk.select(rows, micro.tokens.shape[1]) if trunk else None

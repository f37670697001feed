"""What a policy does on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorarlhf.backbone import SharedBackbone
from lorarlhf.config import Role
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.ppo.rollout import response_texts, sample_responses


@dataclass(frozen=True)
class Answers:
    """Responses of one role to N prompts.

    Attributes:
        texts: N responses without special tokens.
        scores: [N] the reward model's.
        kl: nats a response from the reference, estimated from these samples.
    """

    texts: list[str]
    scores: Tensor
    kl: float


@torch.no_grad()
def answer(
    backbone: SharedBackbone,
    role: Role,
    prompts: Sequence[PromptExample],
    response_length: int,
    temperature: float,
    seed: int,
) -> Answers:
    """Sample one response a prompt as `role`, and score it with the reward role."""
    backbone.eval()
    generator = torch.Generator(backbone.device).manual_seed(seed)
    ids = [example.ids for example in prompts]
    rollout = sample_responses(backbone, ids, response_length, temperature, generator, role)
    own, _ = backbone.logprobs(role, rollout.sequences, temperature)
    reference, _ = backbone.logprobs("reference", rollout.sequences, temperature)
    return Answers(
        texts=response_texts(backbone, rollout),
        scores=backbone.scores(rollout.sequences).cpu(),
        kl=(own - reference).sum().item() / len(prompts),
    )


def win_rate(tuned: Sequence[float], base: Sequence[float]) -> float:
    """Share of prompts on which `tuned` scores higher; ties count half."""
    return sum((t > b) + 0.5 * (t == b) for t, b in zip(tuned, base, strict=True)) / len(tuned)

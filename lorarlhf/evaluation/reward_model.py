"""Scores of a reward model: over held-out data, and of whatever Python code asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.budget import FORWARD_TOKENS
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.formats.values import messages
from lorarlhf.data.rows import BadRow, Prompt
from lorarlhf.data.tokenize import encode_completion
from lorarlhf.errors import UserError
from lorarlhf.run import Run

ROWS_AT_ONCE = 1000  # in memory as lists; what they come from may lie on disk


@torch.no_grad()
def score_tokens(
    backbone: SharedBackbone,
    rows: Sequence[Sequence[int]],
    advance: Callable[[int], None] | None = None,
    token_budget: int = FORWARD_TOKENS,
) -> Tensor:
    """[N] the reward role's score of each token sequence, on the CPU."""
    backbone.eval()
    scores = torch.empty(len(rows))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        sequences = TokenBatch.from_lists(part, [[] for _ in part])
        for group in sequences.micro_batches(token_budget):
            scores[start + group] = backbone.scores(sequences.select(group).to(backbone.device)).cpu()
            if advance:
                advance(len(group))
    return scores


class RewardModel:
    """Scores responses to prompts.

    Args:
        backbone: with an adapter in the reward role.
    """

    def __init__(self, backbone: SharedBackbone) -> None:
        self.backbone = backbone

    @classmethod
    def from_run(cls, run: Run | Path | str) -> RewardModel:
        """What the reward stage of a run has left, on the base model quantised as it was in training.

        Raises:
            UserError: there is no such run, or its reward stage has not finished.
        """
        run = Run(run)
        recipe, adapter = run.read_recipe(), run.adapter("reward")
        backbone = load_backbone(recipe.model, recipe.data)
        backbone.load_role("reward", adapter)
        return cls(backbone)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """How good each response is to its prompt. Only scores of one model can be compared.

        Args:
            prompts: as in data: messages (`[{"role": "user", "content": "Hello"}]`) go through the chat template, text
                is taken as it is.
            responses: one to each prompt.

        Raises:
            UserError: the two are not lists of the same length, or one of them holds something else.
        """
        if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
            raise UserError("score: give a list of prompts and a list of as many responses")
        rows = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if not isinstance(response, str):
                raise UserError(f"score: responses[{i}] is a {type(response).__name__}, not text")
            try:
                asked = prompt if isinstance(prompt, str) else messages({"prompt": prompt}, "prompt")
            except BadRow as bad:
                raise UserError(f"score: prompts[{i}]: {bad}") from None
            prompt_ids, response_ids = encode_completion(self.backbone.tokenizer, asked, response, self.backbone.end_id)
            rows.append(prompt_ids + response_ids)
        scores: list[float] = score_tokens(self.backbone, rows).tolist()
        return scores

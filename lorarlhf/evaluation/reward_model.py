"""Scores of a reward model over held-out data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.budget import FORWARD_TOKENS
from lorarlhf.backbone.shared import SharedBackbone

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

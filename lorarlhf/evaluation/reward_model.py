"""How good a reward model is on held-out comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.intervals import wilson
from lorarlhf.training.objectives import pair_calibration

TOKEN_BUDGET = 16_384  # padded tokens a forward pass
ROWS_AT_ONCE = 1000  # in memory as lists; what they come from may lie on disk


def reward_metrics(
    backbone: SharedBackbone, test: Dataset, advance: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """How well the reward role predicts tokenised comparisons or ratings; nothing if there are none.

    Args:
        test: columns of `tokenize_preferences`, or of `tokenize_scored`.
        advance: called with the number of sequences just scored.
    """
    if not len(test):
        return {}
    if "score" in test.column_names:
        return regression_metrics(score_tokens(backbone, test["input_ids"], advance), torch.tensor(test["score"]))
    chosen, rejected = test["chosen_ids"], test["rejected_ids"]  # read as they are iterated
    metrics = preference_metrics(score_tokens(backbone, chosen, advance), score_tokens(backbone, rejected, advance))
    return {**metrics, "longer_wins_accuracy": longer_wins(chosen, rejected)}


@torch.no_grad()
def score_tokens(
    backbone: SharedBackbone,
    rows: Sequence[Sequence[int]],
    advance: Callable[[int], None] | None = None,
    token_budget: int = TOKEN_BUDGET,
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


def preference_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Accuracy (equal scores count half) with its 95% interval, mean margin, loss and calibration error over [N] pairs
    of scores."""
    margins = chosen - rejected
    accuracy = wilson(_share_won(margins), len(margins))
    return {
        "eval_accuracy": accuracy.value,
        "eval_accuracy_interval": [accuracy.low, accuracy.high],
        "eval_margin": margins.mean().item(),
        "eval_loss": -F.logsigmoid(margins).mean().item(),
        "eval_calibration_error": pair_calibration(margins),
    }


def longer_wins(chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]) -> float:
    """Accuracy of preferring whichever is longer in tokens: what a reward model has to beat."""
    return _share_won(torch.tensor([len(c) - len(r) for c, r in zip(chosen, rejected, strict=True)]))


def regression_metrics(scores: Tensor, targets: Tensor) -> dict[str, float | None]:
    """Error of [N] scores and their correlation with the [N] ratings they should predict, None if either is flat."""
    correlation = torch.corrcoef(torch.stack([scores, targets]))[0, 1]
    return {
        "eval_loss": F.mse_loss(scores, targets).item(),
        "eval_correlation": correlation.item() if correlation.isfinite() else None,
    }


def _share_won(margins: Tensor) -> float:
    return ((margins > 0).float() + 0.5 * (margins == 0).float()).mean().item()

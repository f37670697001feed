"""The reward role as a model that TRL's RewardTrainer takes."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from lorarlhf.backbone.grouping import side_by_side
from lorarlhf.backbone.shared import SharedBackbone


class SequenceScorer(nn.Module):
    """Scores of whole sequences, as PPO will compute them. No family needs a sequence classifier of its own for it.

    Nothing is copied: it trains what the backbone lets train.
    """

    def __init__(self, backbone: SharedBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = copy.deepcopy(backbone.causal_lm.config)  # TRL reads and sets what a classifier's config has
        self.config.num_labels = 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        """Logits [B, 1] of right-padded sequences, those that begin alike behind their common beginning."""
        rows = [ids[:length] for ids, length in zip(input_ids.tolist(), attention_mask.sum(1).tolist(), strict=True)]
        sequences = side_by_side(self.backbone, rows).to(input_ids.device)
        return SequenceClassifierOutput(logits=self.backbone.scores(sequences).unsqueeze(1))

    def add_model_tags(self, tags: list[str]) -> None:
        """TRL would name itself in the model's card, which the export writes here."""

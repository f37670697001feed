"""Tokenised comparisons or ratings as padded batches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from trl.trainer.reward_trainer import DataCollatorForPreference


class PairCollator(DataCollatorForPreference):
    """TRL's, which drops the column it does not know: `tie`, a bool a pair."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if "tie" in examples[0]:
            batch["tie"] = torch.tensor([example["tie"] for example in examples])
        return batch


class ScoredCollator:
    """Right-pad rated sequences into a batch."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, list[Tensor]] = defaultdict(list)
        for row in rows:
            batch["input_ids"].append(torch.tensor(row["input_ids"]))
            batch["attention_mask"].append(torch.ones(len(row["input_ids"]), dtype=torch.long))
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(batch["input_ids"], batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad(batch["attention_mask"], batch_first=True),
            "score": torch.tensor([row["score"] for row in rows], dtype=torch.float32),
        }

"""The reward model: TRL's RewardTrainer on the shared backbone's reward role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer

from lorarlhf.backbone.batch import parts_of_similar_length
from lorarlhf.backbone.budget import tokens_a_pass
from lorarlhf.backbone.grouping import side_by_side
from lorarlhf.backbone.scorer import SequenceScorer
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import RewardConfig
from lorarlhf.training.arguments import one_device, supervised_arguments
from lorarlhf.training.checkpoint import WholeCheckpoints
from lorarlhf.training.objectives import OBJECTIVES, Objective
from lorarlhf.training.processes import SharedBatches


class RewardModelTrainer(SharedBatches, WholeCheckpoints, RewardTrainer):
    """TRL's RewardTrainer with label smoothing and regression, on the backbone as a `SequenceScorer`."""

    def __init__(self, backbone: SharedBackbone, config: RewardConfig, train: Dataset, folder: Path, seed: int) -> None:
        self.backbone = backbone
        self.config = config
        self.objective: Objective = OBJECTIVES[config.objective]
        backbone.train_roles("reward")
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        super().__init__(
            model=SequenceScorer(backbone),  # type: ignore[arg-type]  # has what TRL asks of a PreTrainedModel
            args=one_device(
                TRLRewardConfig(**supervised_arguments(config, folder, seed, backbone.compute_dtype), max_length=None)
            ),
            data_collator=self.objective.collator(backbone.tokenizer.pad_token_id),
            train_dataset=train,
            processing_class=backbone.tokenizer,
        )
        backbone.train_roles("reward")  # should TRL have cast the adapter: back to float32
        self.remove_callback(PrinterCallback)
        self._sums: dict[str, Tensor] = {}

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows are tokenised already, as PPO will see them."""
        return dataset

    def passes(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows of similar length at a time, of which no loss reads another's: the two sides of a pair stay together."""
        rows = self._rows(batch)
        self._add("padding", 0, 0)  # all processes have to know the same names
        if not rows:  # one that only weighs nothing
            return iter([batch])
        lengths = batch["attention_mask"].sum(1).tolist()
        sequences = [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)]
        tokens = [side_by_side(self.backbone, sequences[row::rows]).computed_tokens for row in range(rows)]
        parts = parts_of_similar_length(tokens, tokens_a_pass(self.backbone.device))
        for part in parts:
            computed = side_by_side(self.backbone, [ids for row in part for ids in sequences[row::rows]])
            self._add("padding", computed.padding_tokens, computed.computed_tokens)
        return (self._select(batch, part) for part in parts)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(inputs["input_ids"], inputs["attention_mask"])
        scores = outputs.logits.squeeze(-1)
        loss, numbers = self.objective.loss(scores, inputs, self.config)
        rows = self._rows(inputs)
        for name, values in {**numbers, "mean_reward": scores}.items():
            counted = values.detach() if rows else values[:0]
            self._add(name, counted.double().sum(), len(counted))
        if num_items_in_batch is not None:
            # The mean over the rows of the whole step: the Trainer divides by the number of batches, the exchange by
            # the number of processes.
            share = rows / num_items_in_batch
            loss = loss * share * self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        """Rows of a step in all processes."""
        rows = sum(self._rows(batch) for batch in batch_samples)
        return int(self.accelerator.reduce(torch.tensor(rows, device=self.accelerator.device)))

    def _add(self, name: str, total: Tensor | int, count: int) -> None:
        """To what is logged, the totals over the counts."""
        seen = torch.tensor([total, count], dtype=torch.float64, device=self.accelerator.device)
        self._sums[name] = self._sums.get(name, 0) + seen

    def leave_out(self, batch: dict[str, Any], rows: int) -> dict[str, Any]:
        return {**self._select(batch, list(range(max(1, rows)))), "rows": rows}

    def _rows(self, batch: Mapping[str, Any]) -> int:
        rows: int = batch.get("rows", len(batch["input_ids"]) // len(self.objective.sequences))
        return rows

    def _select(self, batch: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
        size = len(batch["input_ids"]) // len(self.objective.sequences)
        # Of pairs, all chosen sides come first.
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        return {key: torch.cat([part[rows] for part in value.split(size)]) for key, value in tensors.items()}

    # Numbers that are logged: means over all rows since the last time, of all processes; of padding, over all tokens

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        # Once a batch: processes may have made other numbers of passes over it, but know the same names.
        each = self.accelerator.reduce(torch.stack(list(self._sums.values()))).tolist()
        for name, (total, count) in zip(self._sums, each, strict=True):
            before = self._metrics["train"].get(name, [0.0, 0.0])
            self._metrics["train"][name] = [before[0] + total, before[1] + count]
        self._sums.clear()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        sums = self._metrics["train"]
        logs |= {name: total / count for name, (total, count) in sums.items() if count}
        sums.clear()
        super().log(logs, start_time)

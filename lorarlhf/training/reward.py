"""The reward model: TRL's RewardTrainer on the shared backbone's reward role."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer

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

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows are tokenised already, as PPO will see them."""
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(inputs["input_ids"], inputs["attention_mask"])
        scores = outputs.logits.squeeze(-1)
        loss, numbers = self.objective.loss(scores, inputs, self.config)
        rows = inputs.get("rows", len(scores) // len(self.objective.sequences))
        numbers |= {"mean_reward": scores}
        self._count({name: values.detach() if rows else values[:0] for name, values in numbers.items()})
        if num_items_in_batch is not None:
            # The mean over the rows of the whole step: the Trainer divides by the number of batches, the exchange by
            # the number of processes.
            share = rows / num_items_in_batch
            loss = loss * share * self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        """Rows of a step in all processes."""
        sequences = len(self.objective.sequences)
        rows = sum(batch.get("rows", len(batch["input_ids"]) // sequences) for batch in batch_samples)
        return int(self.accelerator.reduce(torch.tensor(rows, device=self.accelerator.device)))

    def leave_out(self, batch: dict[str, Any], rows: int) -> dict[str, Any]:
        size, kept = len(batch["input_ids"]) // len(self.objective.sequences), max(1, rows)
        # Of pairs, all chosen sides come first.
        cut = {
            key: torch.cat([part[:kept] for part in value.split(size)]) if len(value) else value
            for key, value in batch.items()
        }
        return {**cut, "rows": rows}

    # Numbers that are logged: the mean over all rows since the last time, of all processes

    def _count(self, numbers: Mapping[str, Tensor]) -> None:
        """Add up numbers [n] by their names; of several processes, the names are the same and n may differ."""
        sums = torch.tensor(
            [[values.double().sum().item(), len(values)] for values in numbers.values()], dtype=torch.float64
        )
        each = self.accelerator.reduce(sums.to(self.accelerator.device)).tolist()
        for name, (total, count) in zip(numbers, each, strict=True):
            before = self._metrics["train"].get(name, [0.0, 0.0])
            self._metrics["train"][name] = [before[0] + total, before[1] + count]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        sums = self._metrics["train"]
        logs |= {name: total / count for name, (total, count) in sums.items() if count}
        sums.clear()
        super().log(logs, start_time)

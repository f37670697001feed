"""The reward model: TRL's RewardTrainer on the shared backbone's reward role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import RewardConfig
from lorarlhf.training.arguments import supervised_arguments
from lorarlhf.training.checkpoint import RoleCheckpoints
from lorarlhf.training.objectives import OBJECTIVES, Objective


class RewardModelTrainer(RoleCheckpoints, RewardTrainer):
    """TRL's RewardTrainer with label smoothing and regression, on a backbone's `sequence_classifier`."""

    def __init__(self, backbone: SharedBackbone, config: RewardConfig, train: Dataset, folder: Path, seed: int) -> None:
        self.backbone = backbone
        self.config = config
        self.objective: Objective = OBJECTIVES[config.objective]
        backbone.train_roles("reward")
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        super().__init__(
            model=backbone.sequence_classifier(),
            args=TRLRewardConfig(**supervised_arguments(config, folder, seed, backbone.compute_dtype), max_length=None),
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
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = outputs.logits.squeeze(-1)
        metrics: dict[str, list[float]] = self._metrics["train" if model.training else "eval"]
        loss, numbers = self.objective.loss(scores, inputs, self.config)
        for name, value in numbers.items():
            metrics[name].append(value)
        metrics["mean_reward"].append(scores.mean().item())
        return (loss, outputs) if return_outputs else loss

"""Supervised fine-tuning: TRL's SFTTrainer on the shared backbone's policy role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig as TRLSFTConfig
from trl import SFTTrainer

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import SFTConfig
from lorarlhf.training.arguments import one_device, supervised_arguments
from lorarlhf.training.checkpoint import WholeCheckpoints
from lorarlhf.training.processes import SharedBatches


class PolicySFTTrainer(SharedBatches, WholeCheckpoints, SFTTrainer):
    """TRL's SFTTrainer on tokenised rows with labels."""

    def __init__(
        self, backbone: SharedBackbone, config: SFTConfig, train: Dataset, test: Dataset, folder: Path, seed: int
    ) -> None:
        self.backbone = backbone
        backbone.train_roles("policy")
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        super().__init__(
            model=backbone.peft_model,  # type: ignore[arg-type]  # attached by the caller
            args=one_device(
                TRLSFTConfig(**supervised_arguments(config, folder, seed, backbone.compute_dtype), max_length=None)
            ),
            train_dataset=train,
            eval_dataset=test,
            processing_class=backbone.tokenizer,
        )
        backbone.train_roles("policy")  # TRL has cast the adapter to bfloat16: back to float32
        self.remove_callback(PrinterCallback)

    def leave_out(self, batch: dict[str, Any], rows: int) -> dict[str, Any]:
        if rows:
            return {key: value[:rows] for key, value in batch.items()}
        nothing = {key: value[:1, :2] for key, value in batch.items()}  # a row has to go through the model all the same
        return {**nothing, "labels": torch.full_like(nothing["labels"], -100)}

"""Supervised fine-tuning: TRL's SFTTrainer on the shared backbone's policy role."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig as TRLSFTConfig
from trl import SFTTrainer

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import SFTConfig
from lorarlhf.training.arguments import supervised_arguments
from lorarlhf.training.checkpoint import RoleCheckpoints


class PolicySFTTrainer(RoleCheckpoints, SFTTrainer):
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
            args=TRLSFTConfig(
                **supervised_arguments(config, folder, seed, backbone.compute_dtype),
                max_length=None,
            ),
            train_dataset=train,
            eval_dataset=test,
            processing_class=backbone.tokenizer,
        )
        backbone.train_roles("policy")  # TRL has cast the adapter to bfloat16: back to float32
        self.remove_callback(PrinterCallback)

"""Supervised fine-tuning: TRL's SFTTrainer on the shared backbone's policy role."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig as TRLSFTConfig
from trl import SFTTrainer

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import SPLITS
from lorarlhf.data.tokenized import sft_examples
from lorarlhf.planner.fit import check_memory
from lorarlhf.recipe.sections import Recipe, SFTConfig
from lorarlhf.run import Run
from lorarlhf.training.arguments import check_optimizer, supervised_arguments
from lorarlhf.training.checkpoint import RoleCheckpoints, last_checkpoint, move_aside
from lorarlhf.training.progress import StageProgress
from lorarlhf.training.results import save_results, training_summary


def train_sft(recipe: Recipe, run: Run, resume: bool = False, backbone: SharedBackbone | None = None) -> dict[str, Any]:
    """Train, evaluate and save the policy's adapter; the loss counts the response alone. Returns the summary."""
    start = time.perf_counter()
    check_optimizer(recipe.sft, "sft")
    folder = run.stage("sft")
    checkpoint = last_checkpoint(folder) if resume else None
    if backbone is None:
        check_memory("sft", recipe)
        backbone = load_backbone(recipe.model, recipe.data.chat_template)
    train, test = (sft_examples(recipe.data, backbone.tokenizer, split) for split in SPLITS)
    torch.manual_seed(recipe.seed)
    backbone.attach("policy", recipe.lora.for_role("policy"))
    if not resume:
        move_aside(folder)
    trainer = PolicySFTTrainer(backbone, recipe.sft, train.dataset, test.dataset, folder, recipe.seed)
    progress = StageProgress("sft", folder, resume)
    trainer.add_callback(progress)
    run.write_recipe(recipe)
    with progress, backbone.role("policy"):
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        held_out = _held_out(trainer.evaluate()) if len(test.dataset) else {}
    summary = {**held_out, **training_summary(train, test, result.global_step, start)}
    save_results(run, "sft", backbone, "policy", summary)
    return summary


def _held_out(metrics: dict[str, float]) -> dict[str, float]:
    return {"eval_loss": metrics["eval_loss"], "eval_perplexity": math.exp(metrics["eval_loss"])}


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

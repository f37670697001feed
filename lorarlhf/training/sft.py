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

from lorarlhf.backbone import SharedBackbone
from lorarlhf.base_model import load_backbone
from lorarlhf.config import Recipe, SFTConfig
from lorarlhf.data.examples import Split, stream_demonstrations
from lorarlhf.data.tokenize import Tokenized, tokenize_demonstrations
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.run import Run
from lorarlhf.training.arguments import check_optimizer, supervised_arguments
from lorarlhf.training.checkpoint import RoleCheckpoints, last_checkpoint, move_aside
from lorarlhf.training.progress import StageProgress


def train_sft(recipe: Recipe, run: Run, resume: bool = False, backbone: SharedBackbone | None = None) -> dict[str, Any]:
    """Train, evaluate and save the policy's adapter; the loss counts the response alone. Returns the summary."""
    start = time.perf_counter()
    check_optimizer(recipe.sft, "sft")
    folder = run.stage("sft")
    checkpoint = last_checkpoint(folder) if resume else None
    backbone = backbone or load_backbone(recipe.model, recipe.data.chat_template)
    train, test = _examples(recipe, backbone, "train"), _examples(recipe, backbone, "test")
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
    summary = {
        **held_out,
        "train_examples": len(train.dataset),
        "eval_examples": len(test.dataset),
        "dropped_too_long": train.dropped + test.dropped,
        "steps": result.global_step,
        "seconds": time.perf_counter() - start,
        "peak_memory_gb": peak_memory_bytes() / 1e9,
    }
    backbone.train_roles()
    backbone.save_role("policy", folder)
    backbone.tokenizer.save_pretrained(folder)
    run.write_summary("sft", summary)
    return summary


def _examples(recipe: Recipe, backbone: SharedBackbone, split: Split) -> Tokenized:
    rows = stream_demonstrations(recipe.data, split)
    return tokenize_demonstrations(rows, backbone.tokenizer, recipe.data.max_length)


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

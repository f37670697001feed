"""The sft stage: demonstrations in, a policy adapter out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.load import load_model_config
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import SPLITS
from lorarlhf.data.tokenized import sft_examples
from lorarlhf.errors import UserError
from lorarlhf.lock import one_writer
from lorarlhf.recipe.sections import Recipe
from lorarlhf.run import Run
from lorarlhf.stages.beginning import begin_training, check_room, checkpoint_to_go_on_from
from lorarlhf.stages.inputs import check_inputs
from lorarlhf.stages.loading import load_for_training
from lorarlhf.stopwatch import Stopwatch
from lorarlhf.training.arguments import has_router_loss
from lorarlhf.training.results import NOTHING_HELD_OUT, save_results, training_summary
from lorarlhf.training.sft import PolicySFTTrainer


def train_sft(
    recipe: Recipe, run: Run | Path | str, resume: bool = False, backbone: SharedBackbone | None = None
) -> dict[str, Any]:
    """Train on the responses alone, evaluate and save the policy's adapter; return what `summary.json` holds.

    Args:
        run: a run, or its folder.
        resume: go on from the last checkpoint.
        backbone: one that is loaded already; it gains the policy role. None loads the recipe's model.
    """
    run = Run(run)
    with one_writer(run.path):
        return _train_sft(recipe, run, resume, backbone)


def _train_sft(recipe: Recipe, run: Run, resume: bool, backbone: SharedBackbone | None) -> dict[str, Any]:
    if recipe.model.quantize_head and has_router_loss(load_model_config(recipe.model)):
        raise UserError(
            "model.quantize_head: of a mixture of experts, TRL's SFT trainer multiplies with the output layer itself, "
            "in full only; use --set model.quantize_head=false for this stage"
        )
    check_inputs("sft", recipe, run.path)
    folder = run.stage("sft")
    checkpoint = checkpoint_to_go_on_from(recipe, run, "sft", resume)
    stopwatch = Stopwatch(checkpoint)
    backbone = backbone or load_for_training("sft", recipe)
    train, test = (sft_examples(recipe.data, backbone.tokenizer, split) for split in SPLITS)
    torch.manual_seed(recipe.seed)
    backbone.attach("policy", recipe.lora.for_role("policy"))
    check_room(folder, backbone, ["policy"], recipe.sft, resume)
    trainer = PolicySFTTrainer(backbone, recipe.sft, train.dataset, test.dataset, folder, recipe.seed)
    display, trackers = begin_training(trainer, recipe, run, "sft", resume)
    with display, trackers, backbone.role("policy"):
        result = trainer.train(str(checkpoint) if checkpoint else None, stopwatch)
        display.show_phase("evaluation")
        held_out = _held_out(trainer.evaluate()) if len(test.dataset) else {}
    summary = {**held_out, **training_summary(train, test, result.global_step, stopwatch)}
    save_results(run, "sft", backbone, "policy", summary)
    return summary


def result_line(summary: Mapping[str, Any]) -> str:
    """What the stage has come to, in half a line."""
    if not summary["eval_examples"]:
        return NOTHING_HELD_OUT
    return (
        f"held-out loss {summary['eval_loss']:.3f}, perplexity {summary['eval_perplexity']:.2f} "
        f"on {summary['eval_examples']} examples"
    )


def _held_out(metrics: dict[str, float]) -> dict[str, float]:
    return {"eval_loss": metrics["eval_loss"], "eval_perplexity": math.exp(metrics["eval_loss"])}

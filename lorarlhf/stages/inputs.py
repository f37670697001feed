"""What can be said of a stage's inputs before a model is loaded: a misspelt name costs a second, not a download."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from transformers.training_args import OptimizerNames
from transformers.utils import is_flash_attn_2_available

from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import ModelConfig, Recipe, Stage, TrainingConfig
from lorarlhf.stages.data_sources import check_data
from lorarlhf.stages.outputs import check_kernel, check_outputs


def check_inputs(stage: Stage, recipe: Recipe, run: Path) -> None:
    """Look up attention kernel, optimiser, trackers and the run's folder, and read a row of the data as the stage does.

    Raises:
        UserError: one of them is not there, or the row is of no known form.
    """
    config: TrainingConfig = getattr(recipe, stage)
    check_attention(recipe.model)
    check_optimizer(config, stage)
    check_outputs(stage, recipe, run)
    check_data(stage, recipe)


def check_attention(config: ModelConfig) -> None:
    """Raise UserError if the attention kernel that the recipe names is not installed, or has no GPU that it runs on."""
    check_kernel(config)
    if config.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "model.attn_implementation: flash_attention_2 does not run here: it needs a CUDA GPU and a flash-attn that "
            "goes with this torch; use --set model.attn_implementation=sdpa"
        )


def check_optimizer(config: TrainingConfig, stage: Stage) -> None:
    """Raise UserError if transformers knows no such optimiser, or it needs CUDA and there is none."""
    check_optimizer_name(config, stage)
    if not torch.cuda.is_available() and ("8bit" in config.optim or "paged" in config.optim):
        raise UserError(f"{stage}.optim: {config.optim} needs a CUDA GPU; use --set {stage}.optim=adamw_torch")


def check_optimizer_name(config: TrainingConfig, stage: Stage) -> None:
    """The same but for the GPU, which another machine may have."""
    known = [name.value for name in OptimizerNames]
    if config.optim not in known:
        near = difflib.get_close_matches(config.optim, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}"
        raise UserError(f"{stage}.optim: transformers knows no {config.optim}; {hint}")

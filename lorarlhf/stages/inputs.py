"""What can be said of a stage's inputs before a model is loaded: a misspelt name costs a second, not a download."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from transformers.training_args import OptimizerNames
from transformers.utils import is_flash_attn_2_available

from lorarlhf.data.examples import check_sources, stream_demonstrations, stream_preferences, stream_scored
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import ModelConfig, Recipe, Stage, TrainingConfig
from lorarlhf.recipe.stages import STAGES
from lorarlhf.stages.outputs import check_outputs


def check_inputs(stage: Stage, recipe: Recipe, run: Path) -> None:
    """Look up attention kernel, optimiser, trackers and the run's folder, and read a row of the data as the stage does.

    Raises:
        UserError: one of them is not there, or the row is of no known form.
    """
    config: TrainingConfig = getattr(recipe, stage)
    check_attention(recipe.model)
    check_optimizer(config, stage)
    check_outputs(stage, recipe, run)
    check_sources(recipe.data, STAGES[stage].data_keys)
    if stage == "sft":
        stream_demonstrations(recipe.data, "train").check()
    elif stage == "reward":
        stream = stream_preferences if recipe.reward.objective == "bradley_terry" else stream_scored
        stream(recipe.data, "train").check()


def check_attention(config: ModelConfig) -> None:
    """Raise UserError if the attention kernel that the recipe names is not installed."""
    if config.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "model.attn_implementation: flash_attention_2 needs a CUDA GPU and the package flash-attn; "
            "use --set model.attn_implementation=sdpa"
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

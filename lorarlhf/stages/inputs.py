"""What can be said of a stage's inputs before a model is loaded: a misspelt name costs a second, not a download."""

from __future__ import annotations

import difflib

import torch
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import OptimizerNames
from transformers.utils import is_flash_attn_2_available

from lorarlhf.data.examples import check_sources, stream_demonstrations, stream_preferences, stream_scored
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import ModelConfig, Recipe, Stage, TrainingConfig
from lorarlhf.recipe.stages import STAGES


def check_inputs(stage: Stage, recipe: Recipe) -> None:
    """Look up attention kernel, optimiser and trackers, and read a row of the data as the stage does.

    Raises:
        UserError: one of them is not there, or the row is of no known form.
    """
    check_settings(stage, recipe)
    check_sources(recipe.data, STAGES[stage].data_keys)
    if stage == "sft":
        next(iter(stream_demonstrations(recipe.data, "train")))
    elif stage == "reward":
        stream = stream_preferences if recipe.reward.objective == "bradley_terry" else stream_scored
        next(iter(stream(recipe.data, "train")))


def check_settings(stage: Stage, recipe: Recipe) -> None:
    """The same without the data."""
    config: TrainingConfig = getattr(recipe, stage)
    check_attention(recipe.model)
    check_optimizer(config, stage)
    check_trackers(config, stage)


def check_attention(config: ModelConfig) -> None:
    """Raise UserError if the attention kernel that the recipe names is not installed."""
    if config.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "model.attn_implementation: flash_attention_2 needs a CUDA GPU and the package flash-attn; "
            "use --set model.attn_implementation=sdpa"
        )


def check_optimizer(config: TrainingConfig, stage: Stage) -> None:
    """Raise UserError if transformers knows no such optimiser, or it needs CUDA and there is none."""
    known = [name.value for name in OptimizerNames]
    if config.optim not in known:
        near = difflib.get_close_matches(config.optim, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}"
        raise UserError(f"{stage}.optim: transformers knows no {config.optim}; {hint}")
    if not torch.cuda.is_available() and ("8bit" in config.optim or "paged" in config.optim):
        raise UserError(f"{stage}.optim: {config.optim} needs a CUDA GPU; use --set {stage}.optim=adamw_torch")


def check_trackers(config: TrainingConfig, stage: Stage) -> None:
    """Raise UserError if a tracker of `report_to` is not installed."""
    missing = [name for name in config.report_to if name not in get_available_reporting_integrations()]
    if missing:
        raise UserError(f"{stage}.report_to: {missing[0]} is not installed; pip install it, or take it out")

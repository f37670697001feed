"""Evaluate a model that has been exported, as it is, in the place of the stage of a run that it came from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console

from lorarlhf.backbone.adapters import BASE
from lorarlhf.backbone.load import load_backbone
from lorarlhf.data.examples import Loaded
from lorarlhf.data.rows import PromptRow
from lorarlhf.data.tokenized import read_by_model
from lorarlhf.errors import UserError
from lorarlhf.evaluation.judge import Judge
from lorarlhf.evaluation.policy import Responses, respond
from lorarlhf.memory import free_unused_memory
from lorarlhf.publishing.merge import stage_tokenizer
from lorarlhf.recipe.sections import ModelConfig, Quantization, Recipe, Stage
from lorarlhf.recipe.stages import STAGES
from lorarlhf.rl.rewards import RewardFunction, all_reward_functions
from lorarlhf.run import Run
from lorarlhf.stages.evaluate import (
    check_judged,
    evaluate_policy,
    held_out_prompts,
    judged_by,
    load_reference_and_reward,
    opponents_beside,
    reward_figures,
)
from lorarlhf.stages.fidelity import classifier_scores


def evaluate_model(
    run: Run,
    recipe: Recipe,
    stage: Stage,
    model: str,
    quantization: Quantization,
    console: Console,
    reward_functions: Sequence[RewardFunction] = (),
    allow_other_base: bool = False,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """What `evaluate_run` says of a stage, of a model that stands alone.

    A policy answers what the run holds out, and is measured by the run: its reference, its reward, on its base model as
    that is quantised. Only one of the two models is in memory at a time.

    Args:
        recipe: the stage's, with whatever is to be different here.
        model: folder or Hub id.
        quantization: how that is held; `none` takes the weights as they were written.

    Raises:
        UserError: the model cannot be loaded, reads prompts otherwise than the run does, or nothing is held out.
    """
    check_judged(stage, judge)
    config = recipe.model.model_copy(update={"name": model, "revision": None, "quantization": quantization})
    about = {"model": model, "quantization": quantization}
    if STAGES[stage].scores:
        return about | _reward(run, recipe, stage, config)
    functions = all_reward_functions(recipe, reward_functions)
    loaded = held_out_prompts(recipe.data, stage, functions)
    prompts, responses = _responses(config, recipe, loaded)
    free_unused_memory()
    backbone = load_backbone(recipe.model, recipe.data)
    if prompts != [example.ids for example in read_by_model(loaded, recipe.data, backbone.tokenizer, "test")]:
        raise UserError(
            f"--model {model}: reads prompts otherwise than the run (it has another tokenizer or chat template); give "
            "an export of this run"
        )
    reference = load_reference_and_reward(backbone, run, stage, allow_other_base)
    measured = evaluate_policy(backbone, recipe, loaded, functions, console, responses)
    opponents: dict[str, list[str]] = {reference: measured.before}
    if judge:
        opponents |= opponents_beside(reference, backbone, run, recipe, stage, loaded, allow_other_base)
    del backbone  # the judge may be a model of its own
    return {
        **about,
        "stage": stage,
        "reference": reference,
        **measured.figures,
        **judged_by(judge, measured, opponents),
    }


def _responses(
    config: ModelConfig, recipe: Recipe, loaded: Loaded[PromptRow]
) -> tuple[list[list[int]], list[Responses]]:
    """Prompts as the model reads them, and its responses, on the CPU; the model is gone afterwards."""
    backbone = load_backbone(config, recipe.data)
    prompts = read_by_model(loaded, recipe.data, backbone.tokenizer, "test")
    batches = respond(backbone, BASE, prompts, recipe.ppo, recipe.seed)
    responses = [batch.to(torch.device("cpu")) for batch in batches]
    return [example.ids for example in prompts], responses


def _reward(run: Run, recipe: Recipe, stage: Stage, config: ModelConfig) -> dict[str, Any]:
    tokenizer = stage_tokenizer(recipe, stage, run.adapter(stage))
    return reward_figures(recipe.reward.objective, recipe.data, tokenizer, partial(classifier_scores, config))

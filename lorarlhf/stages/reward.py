"""The reward stage: comparisons or ratings in, a reward adapter out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import SPLITS
from lorarlhf.errors import UserError
from lorarlhf.evaluation.report import counting
from lorarlhf.evaluation.reward_model import score_tokens
from lorarlhf.lock import one_writer
from lorarlhf.recipe.sections import Recipe
from lorarlhf.run import Run
from lorarlhf.stages.beginning import begin_training, check_room, checkpoint_to_go_on_from
from lorarlhf.stages.inputs import check_inputs
from lorarlhf.stages.loading import load_for_training
from lorarlhf.stopwatch import Stopwatch
from lorarlhf.training.doubt import doubt_of
from lorarlhf.training.objectives import OBJECTIVES, Objective
from lorarlhf.training.results import NOTHING_HELD_OUT, save_results, training_summary
from lorarlhf.training.reward import RewardModelTrainer

logger = logging.getLogger(__name__)


def train_reward(
    recipe: Recipe, run: Run | Path | str, resume: bool = False, backbone: SharedBackbone | None = None
) -> dict[str, Any]:
    """Train, evaluate on held-out data and save the reward adapter; return what `summary.json` holds.

    Args:
        run: a run, or its folder.
        resume: go on from the last checkpoint.
        backbone: one that is loaded already; it gains the reward role. None loads the recipe's model.
    """
    run = Run(run)
    with one_writer(run.path):
        return _train_reward(recipe, run, resume, backbone)


def _train_reward(recipe: Recipe, run: Run, resume: bool, backbone: SharedBackbone | None) -> dict[str, Any]:
    config, objective = recipe.reward, OBJECTIVES[recipe.reward.objective]
    check_inputs("reward", recipe, run.path)
    folder = run.stage("reward")
    checkpoint = checkpoint_to_go_on_from(recipe, run, "reward", resume)
    stopwatch = Stopwatch(checkpoint)
    backbone = backbone or load_for_training("reward", recipe)
    train, test = (objective.examples(recipe.data, backbone.tokenizer, split) for split in SPLITS)
    if config.use_margin and "margin" not in train.dataset.column_names:
        raise UserError("reward.use_margin: not every row of data.preferences has a margin; set it to false")
    torch.manual_seed(recipe.seed)
    backbone.attach("reward", recipe.lora.for_role("reward"))
    backbone.reward_head.reset_parameters()
    check_room(folder, backbone, ["reward"], config, resume)
    trainer = RewardModelTrainer(backbone, config, train.dataset, folder, recipe.seed)
    display, trackers = begin_training(trainer, recipe, run, "reward", resume, objective.columns)
    with display, trackers:
        with backbone.role("reward"):
            result = trainer.train(str(checkpoint) if checkpoint else None, stopwatch)
        display.show_phase("evaluation")
        held_out = held_out_metrics(backbone, objective, test.dataset, display.console)
        trackers.log({"step": result.global_step, **held_out})
    summary = {
        "objective": config.objective,
        **held_out,
        **(objective.baselines(lambda: train.dataset, test.dataset) if len(test.dataset) else {}),
        **training_summary(train, test, result.global_step, stopwatch),
    }
    save_results(run, "reward", backbone, "reward", summary)
    if doubt := doubt_of(summary):
        logger.warning(doubt)
    return summary


def held_out_metrics(backbone: SharedBackbone, objective: Objective, test: Dataset, console: Console) -> dict[str, Any]:
    """How well the reward role meets the objective on tokenised rows; nothing if there are none."""
    if not len(test):
        return {}
    with counting(console, "scored", len(test) * len(objective.sequences)) as advance:
        return objective.held_out(test, objective.scores(test, partial(score_tokens, backbone, advance=advance)))


def result_line(summary: Mapping[str, Any]) -> str:
    """What the stage has come to, in half a line."""
    return OBJECTIVES[summary["objective"]].result(summary) if summary["eval_examples"] else NOTHING_HELD_OUT

"""The reward stage: comparisons or ratings in, a reward adapter out."""

from __future__ import annotations

import time
from typing import Any

import torch

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import SPLITS
from lorarlhf.data.tokenized import reward_examples
from lorarlhf.display import StageDisplay
from lorarlhf.errors import UserError
from lorarlhf.evaluation.reward_model import reward_metrics
from lorarlhf.planner.fit import check_memory
from lorarlhf.recipe.sections import Recipe
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import Run
from lorarlhf.training.arguments import check_optimizer
from lorarlhf.training.checkpoint import last_checkpoint, move_aside
from lorarlhf.training.progress import DisplayCallback
from lorarlhf.training.results import save_results, training_summary
from lorarlhf.training.reward import RewardModelTrainer


def train_reward(
    recipe: Recipe, run: Run, resume: bool = False, backbone: SharedBackbone | None = None
) -> dict[str, Any]:
    """Train, evaluate on held-out data and save the reward adapter; return what `summary.json` holds.

    Args:
        backbone: one that is loaded already; it gains the reward role. None loads the recipe's model.
    """
    start = time.perf_counter()
    config = recipe.reward
    check_optimizer(config, "reward")
    folder = run.stage("reward")
    checkpoint = last_checkpoint(folder) if resume else None
    if backbone is None:
        check_memory("reward", recipe)
        backbone = load_backbone(recipe.model, recipe.data.chat_template)
    train, test = (reward_examples(recipe, backbone.tokenizer, split) for split in SPLITS)
    if config.use_margin and "margin" not in train.dataset.column_names:
        raise UserError("reward.use_margin: not every row of data.preferences has a margin; set it to false")
    torch.manual_seed(recipe.seed)
    backbone.attach("reward", recipe.lora.for_role("reward"))
    backbone.reward_head.reset_parameters()
    if not resume:
        move_aside(folder)
    trainer = RewardModelTrainer(backbone, config, train.dataset, folder, recipe.seed)
    stage = STAGES["reward"]
    display = StageDisplay(stage.name, stage.unit, stage.columns, folder, resume)
    trainer.add_callback(DisplayCallback(display))
    run.write_recipe(recipe)
    with display, backbone.role("reward"):
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    summary = {
        "objective": config.objective,
        **reward_metrics(backbone, test.dataset),
        **training_summary(train, test, result.global_step, start),
    }
    save_results(run, "reward", backbone, "reward", summary)
    return summary

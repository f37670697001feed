"""The base model for a stage that trains: loaded once it is known to fit, and with a word on GPUs that lie idle."""

from __future__ import annotations

import logging
import os

import torch

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.planner.fit import check_memory
from lorarlhf.recipe.sections import Recipe, Stage

logger = logging.getLogger(__name__)


def load_for_training(stage: Stage, recipe: Recipe, reference: bool = True) -> SharedBackbone:
    """The recipe's model.

    Args:
        reference: whether the stage holds an adapter for the reference too.

    Raises:
        UserError: the stage would not run in the memory that is free, or there is no such model.
    """
    mention_other_gpus(stage)
    check_memory(stage, recipe, reference)
    return load_backbone(recipe.model, recipe.data)


def mention_other_gpus(stage: Stage) -> None:
    """One line where several GPUs are visible and no launcher has started a process on each."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        logger.warning(
            "%d GPUs are visible and the first is used; all of them: torchrun --nproc_per_node %d -m lorarlhf %s ...",
            gpus,
            gpus,
            stage,
        )

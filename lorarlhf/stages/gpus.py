"""What is said where there are more GPUs than one process uses."""

from __future__ import annotations

import logging
import os

import torch

from lorarlhf.recipe.sections import Stage

logger = logging.getLogger(__name__)


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

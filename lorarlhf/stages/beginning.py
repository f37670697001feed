"""Where a stage begins: at a checkpoint or anew, with room on the disk, and after what must come before it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError
from lorarlhf.files import free_bytes
from lorarlhf.manifest import checkpoints_kept, find_checkpoint, numbered_checkpoints
from lorarlhf.recipe.sections import Recipe, Stage, TrainingConfig
from lorarlhf.run import Run
from lorarlhf.stages.settings import check_unchanged

GIB = 2**30
NUMBER_BYTES = 4  # weights in training are float32
ADAM = 2  # numbers that the optimiser keeps of each weight: the most that a common one does
logger = logging.getLogger(__name__)


def checkpoint_to_go_on_from(recipe: Recipe, run: Run, stage: Stage, resume: bool) -> Path | None:
    """The newest checkpoint that is whole; None for a start anew, which says what it will move aside.

    Raises:
        UserError: there is none to resume from, or it was made with other settings.
    """
    folder = run.stage(stage)
    if resume:
        checkpoint = find_checkpoint(folder)
        check_unchanged(recipe, run, stage)
        return checkpoint
    if stands := numbered_checkpoints(folder):
        logger.warning(
            "%s holds %s run up to %s; it will be moved aside, and `lorarlhf %s --resume --output-dir %s` goes on with "
            "it instead",
            folder,
            "a finished" if run.read_summary(stage) else "an interrupted",
            stands[0].name,
            stage,
            run.path,
        )
    return None


def check_not_interrupted(run: Run, stage: Stage) -> None:
    """Raise UserError if a stage that another builds on was begun and has left nothing yet."""
    if run.is_interrupted(stage):
        raise UserError(
            f"{run.stage(stage)}: was begun and has not finished; end it with `lorarlhf {stage} --resume --output-dir "
            f"{run.path}`, or move that folder away to do without it"
        )


def check_room(
    folder: Path, backbone: SharedBackbone, roles: Sequence[str], config: TrainingConfig, resume: bool
) -> None:
    """Raise UserError if the disk has no room for what a stage will write: checkpoints, the best and the adapter.

    Called before a trainer is made, which makes the folder.

    Args:
        roles: that the stage trains.
        resume: earlier checkpoints lie there, so that one more is all that comes.
    """
    weights = NUMBER_BYTES * sum(parameter.numel() for role in roles for parameter in backbone.role_parameters(role))
    checkpoint = (1 + ADAM) * weights + weights  # and the best so far
    beside = 1 if resume else 1 + checkpoints_kept(config.save_total_limit)  # one is written before the oldest goes
    needed = beside * checkpoint + 2 * weights
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"{folder}: {free / GIB:.2f} GiB are free there, and checkpoints and adapters can take {needed / GIB:.2f} "
            "GiB; make room, or give --output-dir a place that has it"
        )

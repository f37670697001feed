"""Where a stage begins: at a checkpoint or anew, after what must come before it, with room on the disk, and seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import Trainer

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.display import StageDisplay
from lorarlhf.errors import UserError
from lorarlhf.files import free_bytes
from lorarlhf.manifest import checkpoints_kept, find_checkpoint, numbered_checkpoints
from lorarlhf.recipe.sections import Recipe, Stage, TrainingConfig
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import Run
from lorarlhf.stages.settings import check_unchanged
from lorarlhf.trackers import Trackers
from lorarlhf.training.checkpoint import move_aside
from lorarlhf.training.progress import show_progress

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


def begin_training(
    trainer: Trainer, recipe: Recipe, run: Run, stage: Stage, resume: bool, columns: Mapping[str, str] | None = None
) -> tuple[StageDisplay, Trackers]:
    """Make a stage's folder ready for its trainer, with the recipe in it; what an earlier run has left is moved aside.

    All processes call this, once nothing is left that can be wrong. A run that goes on keeps what there is.

    Args:
        trainer: TRL's, of the stage.
        columns: logged numbers that are shown beside those of every such stage, by their headings.

    Returns:
        what shows the trainer's numbers and what tracks them, both to be entered while it trains.
    """
    folder, info, config = run.stage(stage), STAGES[stage], getattr(recipe, stage)
    if not resume:
        move_aside(folder)
    trackers = Trackers(config.report_to, folder, config.model_dump(mode="json"))
    display = show_progress(trainer, info, {**info.columns, **(columns or {})}, resume, trackers)
    if trainer.is_world_process_zero():
        run.write_recipe(recipe, stage)
    return display, trackers

"""Checkpoints of the loop: adapters in training, optimiser, and the state; never the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from lorarlhf.backbone.adapters import written_adapter
from lorarlhf.display import read_rows, write_rows
from lorarlhf.files import flush_file, remove_folder
from lorarlhf.json_file import read_object
from lorarlhf.manifest import drop_oldest, written_whole
from lorarlhf.rl.held_out import SAMPLES
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.state import TrainingState
from lorarlhf.stopwatch import Stopwatch

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.pt"


def save_checkpoint(
    folder: Path, state: TrainingState, learner: Learner, keep: int | None, stopwatch: Stopwatch
) -> None:
    """Write `folder/checkpoint-ITERATION`, whole or not at all, with the best adapter so far.

    All processes call this; the main one writes.

    Args:
        folder: the stage's.
        keep: how many checkpoints stay, at least two; None keeps all.
    """
    if learner.processes.is_main:
        for log in filter(Path.is_file, (folder / "metrics.jsonl", folder / SAMPLES)):
            flush_file(log)  # a checkpoint that outlives the machine finds the rows before it
        with written_whole(folder / f"checkpoint-{state.iteration}") as part:
            for role in learner.parameters:
                learner.backbone.save_role(role, part / role)
            torch.save(learner.state_dict(), part / OPTIMIZER_FILE)
            stopwatch.save(part)
            (part / STATE_FILE).write_text(json.dumps(state.to_json()), encoding="utf-8")
            if state.best is not None:
                shutil.copytree(folder / "best", part / "best")
        drop_oldest(folder, keep)
    learner.processes.barrier()


def load_checkpoint(checkpoint: Path, folder: Path, learner: Learner) -> TrainingState:
    """Put adapters and optimiser back, and the stage's folder to where it was; returns the state."""
    for role in learner.parameters:
        learner.backbone.load_role(role, checkpoint / role)
    # `weights_only`: tensors and plain containers; nothing in the file is run.
    learner.load_state_dict(torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True))
    state = TrainingState.from_json(read_object(checkpoint / STATE_FILE))
    if learner.processes.is_main:
        _rewind(folder, checkpoint, state)
    learner.processes.barrier()
    return state


def _rewind(folder: Path, checkpoint: Path, state: TrainingState) -> None:
    """A best policy that came after the checkpoint is not to be kept, nor the samples that came with it."""
    remove_folder(folder / "best")
    if state.best is not None:
        with written_adapter(folder / "best") as part:
            shutil.copytree(checkpoint / "best", part, dirs_exist_ok=True)
    samples = folder / SAMPLES
    if samples.exists() or samples.is_symlink():
        write_rows(samples, [row for row in read_rows(samples, "iteration") if row["iteration"] <= state.iteration])

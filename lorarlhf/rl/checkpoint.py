"""Checkpoints of the loop: adapters in training, optimiser, and the state; never the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from lorarlhf.manifest import drop_oldest, written_whole
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.state import TrainingState

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.pt"


def save_checkpoint(folder: Path, state: TrainingState, learner: Learner, keep: int | None) -> None:
    """Write `folder/checkpoint-ITERATION`, whole or not at all, with the best adapter so far.

    All processes call this; the main one writes.

    Args:
        folder: the stage's.
        keep: how many checkpoints stay, at least two; None keeps all.
    """
    if learner.is_main:
        with written_whole(folder / f"checkpoint-{state.iteration}") as part:
            for role in learner.parameters:
                learner.backbone.save_role(role, part / role)
            torch.save(learner.state_dict(), part / OPTIMIZER_FILE)
            (part / STATE_FILE).write_text(json.dumps(state.to_json()), encoding="utf-8")
            if state.best is not None:
                shutil.copytree(folder / "best", part / "best")
        drop_oldest(folder, keep)
    learner.wait()


def load_checkpoint(checkpoint: Path, folder: Path, learner: Learner) -> TrainingState:
    """Put adapters and optimiser back, and the stage's folder to where it was; returns the state."""
    for role in learner.parameters:
        learner.backbone.load_role(role, checkpoint / role)
    # `weights_only`: tensors and plain containers; nothing in the file is run.
    learner.load_state_dict(torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True))
    state = TrainingState.from_json(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
    if learner.is_main:
        _rewind(folder, checkpoint, state)
    learner.wait()
    return state


def _rewind(folder: Path, checkpoint: Path, state: TrainingState) -> None:
    """A best policy that came after the checkpoint is not to be kept, nor the samples that came with it."""
    shutil.rmtree(folder / "best", ignore_errors=True)
    if state.best is not None:
        shutil.copytree(checkpoint / "best", folder / "best")
    samples = folder / "samples.jsonl"
    if samples.is_file():
        lines = samples.read_text(encoding="utf-8").split("\n")[:-1]  # a whole line ends in a line break
        kept = [line for line in lines if json.loads(line)["iteration"] <= state.iteration]
        samples.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

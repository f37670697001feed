"""What transformers' Trainer writes and reads of a SharedBackbone."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError

logger = logging.getLogger(__name__)


class RoleCheckpoints:
    """Mixin for a Trainer: a checkpoint holds the roles in training, one folder each, and never the base model.

    Optimiser, scheduler and random states are the Trainer's own files; it reads them with `weights_only=True`.
    """

    backbone: SharedBackbone
    args: TrainingArguments

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        for role in self.backbone.trained_roles:
            self.backbone.save_role(role, Path(output_dir or self.args.output_dir or ".") / role)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        for role in self.backbone.trained_roles:
            self.backbone.load_role(role, Path(resume_from_checkpoint) / role)

    def _send_telemetry(self) -> None:
        """TRL's trainers would report to the Hub here. Nothing phones home."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's trainers write a card into every checkpoint; the export writes one that knows the run."""


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint of a stage's folder to go on from.

    Raises:
        UserError: there is none.
    """
    checkpoints = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    if not checkpoints:
        raise UserError(f"{folder}: no checkpoint to resume from; run again without --resume")
    return max(checkpoints, key=lambda p: int(p.name.split("-")[1]))


def move_aside(folder: Path) -> None:
    """Make room for a fresh start: what an earlier one left is kept as `folder.1` and so on."""
    if folder.exists():
        numbered = (folder.with_name(f"{folder.name}.{n}") for n in itertools.count(1))
        aside = folder.rename(next(path for path in numbered if not path.exists()))
        logger.warning("%s held an earlier run; it is now %s", folder, aside)

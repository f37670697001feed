"""TRL's trainers tell the display how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorarlhf.display import StageDisplay
from lorarlhf.recipe.stages import StageInfo
from lorarlhf.trackers import Trackers

CLOSING = "train_runtime"  # in the statistics that a Trainer logs in the end


class DisplayCallback(TrainerCallback):
    """Passes a trainer's steps and logged rows on to a `StageDisplay`, and the rows to trackers."""

    def __init__(self, display: StageDisplay, trackers: Trackers | None = None) -> None:
        self.display = display
        self.trackers = trackers

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A checkpoint's state knows the rows that had been logged; later ones come again.
        logged = [{"step": row["step"], **row} for row in state.log_history if CLOSING not in row]
        self.display.begin(state.max_steps, state.global_step, logged)
        self.display.show_phase("first step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.display.advance_to(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and CLOSING not in logs:
            row = {"step": state.global_step, **logs}
            self.display.log(row)
            if self.trackers is not None:
                self.trackers.log(row)


def show_progress(
    trainer: Trainer, stage: StageInfo, columns: Mapping[str, str], resumed: bool, trackers: Trackers
) -> StageDisplay:
    """The display of a stage, which the trainer tells how far it is; the main process alone shows it."""
    folder, is_main = Path(str(trainer.args.output_dir)), trainer.is_world_process_zero()
    display = StageDisplay(stage.name, stage.unit, columns, folder, resumed, quiet=not is_main)
    trainer.add_callback(DisplayCallback(display, trackers))
    return display

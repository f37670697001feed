"""TRL's trainers tell the display how far they are."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorarlhf.display import StageDisplay


class DisplayCallback(TrainerCallback):
    """Passes a trainer's steps and logged rows on to a `StageDisplay`."""

    def __init__(self, display: StageDisplay) -> None:
        self.display = display

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.display.begin(state.max_steps, state.global_step)

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
        if logs and "train_runtime" not in logs:  # the trainer's closing statistics
            self.display.log({"step": state.global_step, **logs})

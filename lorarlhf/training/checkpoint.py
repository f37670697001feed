"""Checkpoints of TRL's trainers: adapters, optimiser and schedule in a folder that is whole or not there."""

from __future__ import annotations

import itertools
import json
import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from lorarlhf.backbone.budget import no_second_attempt
from lorarlhf.backbone.finite import NotFinite, check_role, refusal
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import Stopped, UserError
from lorarlhf.json_file import read_object
from lorarlhf.manifest import drop_oldest, written_whole
from lorarlhf.signals import StopRequest, stop_request
from lorarlhf.stopwatch import Stopwatch

TRAINING_REMEDY = (
    "lower per_device_train_batch_size (a resumed run then accumulates more, so that a step stays the same), set "
    "gradient_checkpointing=true, or lower data.max_length"
)
NOT_YET_LOGGED = "not_yet_logged.json"
logger = logging.getLogger(__name__)


class WholeCheckpoints(Trainer):
    """Mixin for a Trainer on a SharedBackbone.

    A checkpoint holds the roles in training, one folder each, and never the base model. Optimiser, schedule and random
    state are the Trainer's own files; it reads them with `weights_only=True`. What has been counted since the last
    logged row is kept as well, so that a row logged after a resume is that of an uninterrupted run.
    """

    backbone: SharedBackbone
    _stopwatch: Stopwatch
    _step_batches: list[tuple[torch.Tensor, torch.Tensor]]  # token ids of the batches of this step, and their losses

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | None = None, stopwatch: Stopwatch | None = None
    ) -> TrainOutput:
        """Train to the end, from a checkpoint or from the start; takes no step where the checkpoint is of the end.

        Args:
            stopwatch: of the stage, which checkpoints keep; None for one that starts here.

        Raises:
            UserError: out of memory, or NaN or infinity came up. A step is not tried again with less: gradients of its
                earlier batches, or some of the weights, have changed by then.
            Stopped: by a signal, between two steps; the checkpoint is written.
        """
        self._step_batches, self._stopwatch = [], stopwatch or Stopwatch()
        with no_second_attempt("training", TRAINING_REMEDY), stop_request() as request:
            guard = _Guard(self, request)
            self.add_callback(guard)
            try:
                done = self._train(resume_from_checkpoint)
            except NotFinite as fault:
                raise refusal(fault, self.backbone.tokenizer, Path(str(self.args.output_dir)), guard.when) from fault
            finally:
                self.remove_callback(guard)
        if guard.stopped_by is not None and self.state.global_step < self.state.max_steps:
            saved = f"{Path(str(self.args.output_dir)).name}/checkpoint-{self.state.global_step}"
            raise Stopped(
                f"stopped by {guard.stopped_by.name} after step {self.state.global_step}, with {saved}",
                guard.stopped_by,
            )
        return done

    def _train(self, resume_from_checkpoint: str | None) -> TrainOutput:
        if resume_from_checkpoint is None:
            return super().train()
        checkpoint = Path(resume_from_checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        counts = read_object(checkpoint / NOT_YET_LOGGED)
        self._keep_total_batch(counts["total_batch"])  # first: it says of how many steps an epoch is
        *_, steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if state.global_step < steps:
            return super().train(resume_from_checkpoint=resume_from_checkpoint)
        self._load_from_checkpoint(resume_from_checkpoint)
        self.state, self._total_train_tokens = state, counts["tokens"]
        self.accelerator.prepare_model(self.model)  # for what is evaluated next
        self.callback_handler.on_train_begin(self.args, self.state, self.control)
        return TrainOutput(state.global_step, 0.0, {})

    # What the Trainer calls

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        ids: torch.Tensor = inputs["input_ids"]
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._step_batches.append((ids, loss.detach()))
        return loss

    def check_gradients(self) -> None:
        """Raise NotFinite if a loss or gradient of this step has NaN or infinity; called before the optimiser steps."""
        role = self.backbone.trained_roles[0]
        losses = torch.stack([loss.float().sum() for _, loss in self._step_batches])
        gradients = [p.grad for p in self.backbone.role_parameters(role) if p.grad is not None]
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        if not (losses.isfinite().all() & finite):
            bad = [ids for (ids, _), loss in zip(self._step_batches, losses, strict=True) if not loss.isfinite()]
            texts = [row for ids in bad or [ids for ids, _ in self._step_batches] for row in ids.tolist()]
            raise NotFinite("the loss" if bad else "the gradient", role, texts)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._step_batches:
            check_role(self.backbone, self.backbone.trained_roles[0], self._step_batches[0][0][0].tolist())
        self.store_flos()  # an exchange between processes
        unlogged = self._not_yet_logged()  # another
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            with written_whole(folder / f"checkpoint-{self.state.global_step}") as part:
                for role in self.backbone.trained_roles:
                    self.backbone.save_role(role, part / role)
                self._save_optimizer_and_scheduler(str(part))
                if self.args.world_size == 1:  # several draw nothing at random: dropout is off, the order is seeded
                    self._save_rng_state(str(part))
                self._stopwatch.save(part)
                (part / NOT_YET_LOGGED).write_text(json.dumps(unlogged), encoding="utf-8")
                self.state.save_to_json(str(part / TRAINER_STATE_NAME))
            drop_oldest(folder, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        for role in self.backbone.trained_roles:
            self.backbone.load_role(role, Path(resume_from_checkpoint) / role)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called at the first step after a resume, when the Trainer has set its counts to 0."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._count_on_from(read_object(Path(checkpoint) / NOT_YET_LOGGED))

    def _send_telemetry(self) -> None:
        """TRL's trainers would report to the Hub here. Nothing phones home."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's trainers write a card into every checkpoint; the export writes one that knows the run."""

    # Counts since the last logged row

    def _not_yet_logged(self) -> dict[str, Any]:
        loss = self.accelerator.reduce(self._tr_loss.clone(), "mean")
        return {
            "loss": loss.item(),
            "last_logged": self._globalstep_last_logged,
            "metrics": self._batch_numbers(),
            "tokens": getattr(self, "_total_train_tokens", 0),  # SFTTrainer's
            "total_batch": self.get_total_train_batch_size(self.args),
        }

    def _batch_numbers(self) -> dict[str, list[float]]:
        """Of each batch since the last logged row, by name; the same in all processes."""
        numbers: dict[str, list[float]] = self._metrics["train"]  # type: ignore[attr-defined]  # TRL's trainers'
        return numbers

    def _count_on_from(self, counts: Mapping[str, Any]) -> None:
        self._tr_loss += torch.tensor(counts["loss"], dtype=self._tr_loss.dtype, device=self._tr_loss.device)
        self._globalstep_last_logged = counts["last_logged"]
        self._batch_numbers().update(counts["metrics"])
        self._total_train_tokens = counts["tokens"]

    def _keep_total_batch(self, before: int) -> None:
        """With another number of processes than before, accumulate as often as gives the same rows a step.

        Raises:
            UserError: there is no such number.
        """
        now = self.get_total_train_batch_size(self.args)
        once = now // self.args.gradient_accumulation_steps
        if now == before:
            return
        if before % once:
            raise UserError(
                f"--resume: a step was of {before} rows, and {self.args.world_size} processes take {once} at a time; "
                "resume with a number of processes (or per_device_train_batch_size) that divides it"
            )
        self.args.gradient_accumulation_steps = before // once
        logger.warning("gradient_accumulation_steps is now %d: a step is of %d rows as before", before // once, before)


class _Guard(TrainerCallback):
    """Looks at gradients before each step, and ends training after the step in which a signal came."""

    def __init__(self, trainer: WholeCheckpoints, request: StopRequest) -> None:
        self.trainer = trainer
        self.request = request
        self.stopped_by: signal.Signals | None = None
        self.when = "before the first step"

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.when = f"in step {state.global_step + 1}"
        self.trainer._step_batches.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.check_gradients()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        asked = torch.tensor(float(self.request.signal is not None), device=self.trainer.accelerator.device)
        if self.trainer.accelerator.reduce(asked) > 0:  # all processes end after the same step
            self.stopped_by = self.request.signal or signal.SIGTERM
            control.should_save = control.should_training_stop = True


def move_aside(folder: Path) -> None:
    """Make room for a fresh start: what an earlier one left is kept as `folder.1` and so on.

    All processes call this, once nothing is left that can be wrong; the main one moves.
    """
    state = PartialState()
    if folder.exists() and any(folder.iterdir()) and state.is_main_process:
        numbered = (folder.with_name(f"{folder.name}.{n}") for n in itertools.count(1))
        aside = folder.rename(next(path for path in numbered if not path.exists()))
        logger.warning("%s held an earlier run; it is now %s", folder, aside)
    state.wait_for_everyone()

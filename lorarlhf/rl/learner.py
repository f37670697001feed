"""What turns gradients into steps: optimiser, schedule, clipping, and the processes that learn together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, get_scheduler

from lorarlhf.backbone.budget import no_second_attempt
from lorarlhf.backbone.finite import NotFinite
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError, first_line
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.prompts import Share

STEP_REMEDY = "make room on the device, or start again with ppo.optim=paged_adamw_8bit or a lower lora.r"


class Learner:
    """Steps of the roles that learn, each a parameter group of one optimiser.

    Rates are scheduled by iteration, so that they end where they should also when updates are stopped early. Gradients
    are clipped role by role: policy and critic share no weights, and a large error of the critic's must not slow the
    policy. Several processes add up their gradients before each step, in one bucket. There is no DDP around the model:
    it would hook every backward pass, and a step here has several, of roles that take turns.

    Args:
        roles: whose adapters (and heads) learn.
        folder: the stage's.
    """

    def __init__(self, backbone: SharedBackbone, config: PPOConfig, roles: Sequence[str], folder: Path) -> None:
        self.backbone = backbone
        self.config = config
        self.parameters = {role: list(backbone.role_parameters(role)) for role in roles}
        arguments = _optimizer_arguments(config, backbone, folder)  # which look for processes in their own way
        self.accelerator = Accelerator(cpu=backbone.device.type == "cpu")
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        rates = {"policy": config.learning_rate, "critic": config.critic_learning_rate or config.learning_rate}
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        groups = [
            {"params": parameters, "lr": rates[role], "weight_decay": config.weight_decay}
            for role, parameters in self.parameters.items()
        ]
        self.optimizer = kind(groups, **options)
        self.scheduler = get_scheduler(
            config.lr_scheduler_type, self.optimizer, config.warmup_steps, max(1, config.iterations)
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return bool(self.accelerator.is_main_process)

    # Steps

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to what is there."""
        self.accelerator.backward(loss)

    def discard_gradients(self) -> None:
        """Start a minibatch anew."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, roles: Sequence[str]) -> dict[str, float]:
        """One step of the optimiser for these roles; returns the norm of each role's gradient before clipping.

        A role that is not named keeps its weights: without gradients the optimiser passes it over.

        Raises:
            UserError: out of memory. Some weights may have changed by then, so a second attempt would be another step.
            NotFinite: a gradient has NaN or infinity, in all processes alike; nothing has changed.
        """
        with no_second_attempt("optimiser step", STEP_REMEDY):
            return self._step(roles)

    def _step(self, roles: Sequence[str]) -> dict[str, float]:
        parameters = [parameter for role in roles for parameter in self.parameters[role]]
        for parameter in parameters:  # none where this process has no response of the minibatch
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._add_over_processes(parameters)
        norms = {
            role: float(nn.utils.clip_grad_norm_(self.parameters[role], self.config.max_grad_norm)) for role in roles
        }
        for role, norm in norms.items():
            if not math.isfinite(norm):
                self.discard_gradients()
                raise NotFinite("the gradient", role)
        self.optimizer.step()
        self.discard_gradients()
        return norms

    def schedule(self) -> None:
        """An iteration is over."""
        self.scheduler.step()

    @property
    def learning_rate(self) -> float:
        """Of the policy, at present."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def _add_over_processes(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.share.processes == 1:
            return
        bucket = torch.cat([parameter.grad.flatten() for parameter in parameters])  # type: ignore[union-attr]
        torch.distributed.all_reduce(bucket)
        pieces = bucket.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    # Processes

    def sum(self, numbers: Tensor) -> Tensor:
        """The same tensor added up over all processes."""
        if self.share.processes > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def sum_named(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Scalars added up by name over all processes, some of which may have nothing of a name."""
        totals: dict[str, float] = {}
        for part in self.gather([{name: value.item() for name, value in sums.items()}]):
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def any(self, here: bool) -> bool:
        """Whether something holds in any process."""
        return bool(self.sum(torch.tensor(float(here), device=self.backbone.device)))

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """Every process's rows, in the order of the processes: what each has of a table that is split between them."""
        return list(rows) if self.share.processes == 1 else list(gather_object(list(rows)))

    def gather_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors [b] of every process as [B] on the CPU."""
        rows = self.gather(list(zip(*(column.tolist() for column in columns.values()), strict=True)))
        return {name: torch.tensor([row[k] for row in rows]) for k, name in enumerate(columns)}

    def wait(self) -> None:
        """Until all processes have come here."""
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def heard_by_all(self) -> Iterator[None]:
        """What fails in one process inside the block fails in all, and each can say why.

        Without it the others would wait for ever in their next exchange for one that is gone (out of memory, say).
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        reasons = self.gather([failure and first_line(failure)])
        if failure is not None:
            raise failure
        for process, reason in enumerate(reasons):
            if reason is not None:
                raise UserError(f"process {process}: {reason}")

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and schedule; weights are the adapters'."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def _optimizer_arguments(config: PPOConfig, backbone: SharedBackbone, folder: Path) -> TrainingArguments:
    """Transformers knows its optimisers by these."""
    return TrainingArguments(
        output_dir=str(folder),
        optim=config.optim,
        learning_rate=config.learning_rate,
        use_cpu=backbone.device.type == "cpu",
        report_to="none",
    )

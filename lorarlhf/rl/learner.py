"""What turns gradients into steps: optimiser, schedule and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, get_scheduler

from lorarlhf.backbone.budget import no_second_attempt
from lorarlhf.backbone.finite import NotFinite
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.process_group import ProcessGroup

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
        processes: those that take each step together.
    """

    def __init__(
        self,
        backbone: SharedBackbone,
        config: PPOConfig,
        roles: Sequence[str],
        folder: Path,
        processes: ProcessGroup,
    ) -> None:
        self.backbone = backbone
        self.config = config
        self.parameters = {role: list(backbone.role_parameters(role)) for role in roles}
        self.processes = processes
        rates = {"policy": config.learning_rate, "critic": config.critic_learning_rate or config.learning_rate}
        kind, options = Trainer.get_optimizer_cls_and_kwargs(_optimizer_arguments(config, backbone, folder))
        groups = [
            {"params": parameters, "lr": rates[role], "weight_decay": config.weight_decay}
            for role, parameters in self.parameters.items()
        ]
        self.optimizer = kind(groups, **options)
        self.scheduler = get_scheduler(
            config.lr_scheduler_type, self.optimizer, config.warmup_steps, max(1, config.iterations)
        )

    # Steps

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to what is there."""
        loss.backward()

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
        self._sum_gradients(parameters)
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

    def _sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Over all processes, in one exchange."""
        if self.processes.share.processes == 1:
            return
        bucket = torch.cat([parameter.grad.flatten() for parameter in parameters])  # type: ignore[union-attr]
        bucket = self.processes.sum(bucket)
        pieces = bucket.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and schedule; weights are the adapters'."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        # Of a run that is to go further, the rate is another one at this place: `linear` had come to 0.
        scheduler: Any = self.scheduler
        for group, highest, share in zip(
            self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = highest * share(scheduler.last_epoch)


def _optimizer_arguments(config: PPOConfig, backbone: SharedBackbone, folder: Path) -> TrainingArguments:
    """Transformers knows its optimisers by these."""
    return TrainingArguments(
        output_dir=str(folder),
        optim=config.optim,
        learning_rate=config.learning_rate,
        use_cpu=backbone.device.type == "cpu",
        report_to="none",
    )

"""What changes from iteration to iteration besides weights and optimiser: all that a checkpoint must hold of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.kl import adapted_kl_coef
from lorarlhf.rl.rewards import RunningMoments, shape_scores


@dataclass
class Evaluation:
    """The policy on the held-out prompts.

    Attributes:
        row: what is logged of it.
        scores, finished: of each response, raw: what it was worth is judged again when the normalisation has moved.
        kl: nats a response.
    """

    row: dict[str, Any]
    scores: list[float]
    finished: list[bool]
    kl: float


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        iteration: iterations done.
        step: steps of the optimiser done.
        kl_coef: weight of the KL penalty.
        moments: of all scores so far.
        last: the last iteration's statistics.
        first, best: the evaluation before training, and the best one yet; None without evaluations.
    """

    kl_coef: float
    iteration: int = 0
    step: int = 0
    moments: RunningMoments = field(default_factory=RunningMoments)
    last: dict[str, float] = field(default_factory=dict)
    first: Evaluation | None = None
    best: Evaluation | None = None

    def shaped(self, config: PPOConfig, scores: Tensor, finished: Tensor) -> Tensor:
        """[B] what responses are worth at present: raw scores normalised, clipped and penalised."""
        moments = self.moments if config.normalize_reward else None
        return shape_scores(scores, finished, moments, config.reward_clip, config.missing_eos_penalty)

    def objective(self, config: PPOConfig, evaluation: Evaluation) -> float:
        """What training maximises, of an evaluation: the mean shaped score less `kl_coef` x KL."""
        shaped = self.shaped(config, torch.tensor(evaluation.scores), torch.tensor(evaluation.finished))
        return shaped.mean().item() - self.kl_coef * evaluation.kl

    def judge(self, config: PPOConfig, evaluation: Evaluation) -> bool:
        """Whether an evaluation is better than the best so far, which it then replaces.

        Both are judged by today's normalisation and coefficient: yesterday's objective is on another scale.
        """
        objective = self.objective(config, evaluation)
        evaluation.row["eval_objective"] = objective
        if self.best is not None and objective <= self.objective(config, self.best):
            return False
        self.best = evaluation
        return True

    def end_iteration(self, config: PPOConfig, stats: dict[str, float], steps: int) -> None:
        """Count an iteration, and adapt the KL coefficient to what it measured."""
        self.iteration += 1
        self.step += steps
        self.last = stats
        if config.kl_target is not None:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, stats["kl"], config.kl_target, config.batch_size, config.kl_horizon
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` makes the same state of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingState:
        evaluations = {name: None if data[name] is None else Evaluation(**data[name]) for name in ("first", "best")}
        return cls(**{**data, **evaluations, "moments": RunningMoments(**data["moments"])})

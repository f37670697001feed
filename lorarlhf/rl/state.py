"""What changes from iteration to iteration besides weights and optimiser: all that a checkpoint must hold of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.kl import adapted_kl_coef
from lorarlhf.rl.shaping import RunningMoments, shape_scores


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
        worse: evaluations in a row that were worse than the best.
        skipped: steps, or updates of an iteration, that were left out for NaN or infinity.
    """

    kl_coef: float
    iteration: int = 0
    step: int = 0
    moments: RunningMoments = field(default_factory=RunningMoments)
    last: dict[str, float] = field(default_factory=dict)
    first: Evaluation | None = None
    best: Evaluation | None = None
    worse: int = 0
    skipped: int = 0

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
        best = -math.inf if self.best is None else self.objective(config, self.best)
        # While the critic warms up it is the same policy again and again, and what differs is rounding.
        self.worse = self.worse + 1 if objective < best and self.iteration > config.critic_only_iterations else 0
        if self.best is not None and objective <= best:
            return False
        self.best = evaluation
        return True

    def improved(self, config: PPOConfig) -> bool | None:
        """Whether the best policy is one that was trained; None without evaluations, which alone could tell."""
        return None if self.best is None else bool(self.best.row["iteration"] > config.critic_only_iterations)

    def reason_to_stop(self, config: PPOConfig) -> str | None:
        """Why training ends before its last iteration, by the recipe's `stop_when`; None if it goes on.

        It is read off the last iteration and evaluation, so a run that is resumed stays stopped, unless the rules are
        others now.
        """
        rules = config.stop_when
        if rules is None or not self.iteration or self.iteration == config.iterations:
            return None
        if rules.kl is not None and self.last and self.last["kl"] > rules.kl:
            return f"KL {self.last['kl']:.2f} nats a response (ppo.stop_when.kl {rules.kl:g})"
        if rules.held_out_worse is not None and self.worse >= rules.held_out_worse:
            return f"evaluations in a row worse than the best: {self.worse} (ppo.stop_when.held_out_worse)"
        return None

    def is_over(self, config: PPOConfig) -> bool:
        """Whether no iteration is left to do."""
        return self.iteration >= config.iterations or self.reason_to_stop(config) is not None

    def skip_iteration(self) -> None:
        """Count an iteration from which nothing was learnt."""
        self.iteration += 1
        self.skipped += 1

    def end_iteration(self, config: PPOConfig, stats: dict[str, float], steps: int, skipped: int = 0) -> None:
        """Count an iteration with its steps, taken and left out, and adapt the KL coefficient to what it measured."""
        self.iteration += 1
        self.step += steps
        self.skipped += skipped
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

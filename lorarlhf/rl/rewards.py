"""The score of a whole response: reward model, Python functions, penalties."""

from __future__ import annotations

import importlib
import reprlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import PPOConfig, WeightedFunction

RewardFunction = Callable[..., Sequence[float]]
WeightedReward = tuple[RewardFunction, float]


def all_reward_functions(config: PPOConfig, more: Sequence[RewardFunction] = ()) -> list[WeightedReward]:
    """Those that the recipe names, with their weights, and `more` of weight 1."""
    return [*load_reward_functions(config.reward_functions), *((function, 1.0) for function in more)]


def load_reward_functions(specs: Sequence[str | WeightedFunction]) -> list[WeightedReward]:
    """Import `package.module:function` entries of `ppo.reward_functions`, each with its weight."""
    if specs and "" not in sys.path:
        sys.path.insert(0, "")  # they may live in the current folder
    functions = []
    for spec in specs:
        entry = spec if isinstance(spec, WeightedFunction) else WeightedFunction(function=spec)
        module_name, name = entry.function.split(":")
        try:
            function = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"ppo.reward_functions: cannot import '{entry.function}': {error}; "
                "run from the folder that holds the module, or install it"
            ) from None
        functions.append((function, entry.weight))
    return functions


def function_scores(functions: Sequence[WeightedReward], prompts: list[str], responses: list[str]) -> Tensor:
    """[B] weighted sum of the functions' scores. Raises UserError if one returns anything but B finite numbers."""
    total = torch.zeros(len(responses))
    for function, weight in functions:
        returned = function(prompts, responses)
        try:
            scores = torch.as_tensor(returned, dtype=torch.float32, device=total.device)
        except (TypeError, ValueError, RuntimeError):  # nothing that makes a tensor
            scores = None
        if scores is None or scores.shape != total.shape or not scores.isfinite().all():
            name = getattr(function, "__qualname__", type(function).__qualname__)
            raise UserError(
                f"ppo.reward_functions: {function.__module__}:{name} must return {len(responses)} finite numbers, "
                f"one a response; it returned {reprlib.repr(returned)}"
            )
        total += weight * scores
    return total


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far (Chan et al. 1983, parallel update)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        return (self.squares / self.count) ** 0.5 if self.count else 1.0

    def update(self, x: Tensor) -> None:
        count, mean = x.numel(), float(x.mean())
        total = self.count + count
        delta = mean - self.mean
        self.squares += float((x - mean).square().sum()) + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (self.std + 1e-8)


def shape_scores(
    scores: Tensor,
    finished: Tensor,
    moments: RunningMoments | None,
    reward_clip: float | None,
    missing_eos_penalty: float | None,
) -> Tensor:
    """Normalise, clip, then take the penalty from responses cut at the limit, so that clipping cannot hide it.

    Args:
        scores: [B]; finished: [B] bool.
        moments: of all scores so far, to normalise by; None leaves them as they are.
    """
    if moments is not None:
        scores = moments.normalize(scores)
    if reward_clip is not None:
        scores = scores.clamp(-reward_clip, reward_clip)
    if missing_eos_penalty is not None:
        scores = torch.where(finished, scores, scores - missing_eos_penalty)
    return scores

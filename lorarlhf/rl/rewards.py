"""The score of a whole response: reward model, Python functions, penalties."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from lorarlhf.data.rows import BadRow, ColumnsWanted
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Recipe, WeightedFunction
from lorarlhf.rl.functions import import_function

RewardFunction = Callable[..., Sequence[float]]
WeightedReward = tuple[RewardFunction, float]


def all_reward_functions(recipe: Recipe, more: Sequence[RewardFunction] = ()) -> list[WeightedReward]:
    """Those that the recipe names, with their weights, and `more` of weight 1."""
    named = load_reward_functions(recipe.ppo.reward_functions, recipe.requires)
    return [*named, *((function, 1.0) for function in more)]


def load_reward_functions(
    specs: Sequence[str | WeightedFunction], requires: Sequence[str] = ()
) -> list[WeightedReward]:
    """Import `package.module:function` entries of `ppo.reward_functions`, each with its weight.

    Raises:
        UserError: one cannot be imported, or is from neither the current folder nor one of the packages `requires`.
    """
    entries = [spec if isinstance(spec, WeightedFunction) else WeightedFunction(function=spec) for spec in specs]
    return [(import_function(entry.function, requires), entry.weight) for entry in entries]


def columns_wanted(functions: Sequence[WeightedReward]) -> ColumnsWanted:
    """The columns of the prompt data that these functions take, together.

    A parameter behind the first two is a column: one without a default is needed, one with a default is taken where
    there is such a column; `**columns` takes all.
    """
    parameters = [parameter for function, _ in functions for parameter in _column_parameters(function)]
    named = [parameter for parameter in parameters if parameter.kind is not Parameter.VAR_KEYWORD]
    needed = frozenset(parameter.name for parameter in named if parameter.default is Parameter.empty)
    return ColumnsWanted(
        needed=needed,
        welcome=frozenset(parameter.name for parameter in named) - needed,
        all=len(named) < len(parameters),
    )


def function_scores(
    functions: Sequence[WeightedReward],
    prompts: list[str],
    responses: list[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Tensor:
    """[B] weighted sum of the functions' scores.

    Args:
        columns: of the prompt data, B values each; a function gets those that its parameters name.

    Raises:
        UserError: a function returns anything but B finite numbers, or names a column that there is not.
    """
    total = torch.zeros(len(responses))
    for function, weight in functions:
        returned = function(prompts, responses, **_arguments(function, columns or {}))
        try:
            scores = torch.as_tensor(returned, dtype=torch.float32, device=total.device)
        except (TypeError, ValueError, RuntimeError):  # nothing that makes a tensor
            scores = None
        if scores is None or scores.shape != total.shape or not scores.isfinite().all():
            raise UserError(
                f"ppo.reward_functions: {_name(function)} must return {len(responses)} finite numbers, "
                f"one a response; it returned {reprlib.repr(returned)}"
            )
        total += weight * scores
    return total


def _arguments(function: RewardFunction, columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    first_two = list(_parameters(function))[:2]  # a column may have the name of one of these
    try:
        return {
            name: values
            for name, values in columns_wanted([(function, 1.0)]).of(columns).items()
            if name not in first_two
        }
    except BadRow as missing:
        raise UserError(f"{_name(function)}: {missing}") from None


def _name(function: RewardFunction) -> str:
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _column_parameters(function: RewardFunction) -> list[Parameter]:
    parameters = _parameters(function)
    named = [parameters[name] for name in list(parameters)[2:]]
    return [parameter for parameter in named if parameter.kind is not Parameter.VAR_POSITIONAL]


def _parameters(function: RewardFunction) -> Mapping[str, Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some functions written in C do not say
        return {}


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

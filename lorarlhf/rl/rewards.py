"""The score of a whole response: reward model, Python functions, penalties."""

from __future__ import annotations

import inspect
import math
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from lorarlhf.data.rows import BadRow, ColumnsWanted
from lorarlhf.errors import UserError, first_line, is_out_of_memory
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
    timeout: float | None = None,
) -> Tensor:
    """[B] weighted sum of the functions' scores.

    Args:
        columns: of the prompt data, B values each; a function gets those that its parameters name.
        timeout: seconds that each may take.

    Raises:
        UserError: a function raises, takes longer, returns anything but B finite numbers, or names a column that there
            is not.
    """
    total = torch.zeros(len(responses))
    for function, weight in functions:
        named = _arguments(function, columns or {})
        returned = _within(timeout, function, lambda: function(prompts, responses, **named))  # noqa: B023  # called now
        try:
            scores = torch.as_tensor(returned, dtype=torch.float32, device=total.device)
        except (TypeError, ValueError, RuntimeError):  # nothing that makes a tensor
            scores = None
        if scores is None or scores.shape != total.shape or not scores.isfinite().all():
            raise UserError(
                f"ppo.reward_functions: {_name(function)} must return {len(responses)} finite numbers, "
                f"one a response; it returned {reprlib.repr(returned)}{_first_bad(returned, prompts, responses)}"
            )
        total += weight * scores
    return total


def _within(timeout: float | None, function: RewardFunction, call: Callable[[], Any]) -> Any:
    """What a function returns. One that does not return in time is left behind in its thread, which ends with us."""
    outcome: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except (Exception, SystemExit) as error:
            errors.append(error)

    if timeout is None:
        run()
    else:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(timeout)
    if errors and is_out_of_memory(errors[0]):
        raise errors[0]
    if errors:
        said = f"{type(errors[0]).__name__}: {first_line(errors[0])}"
        raise UserError(f"ppo.reward_functions: {_name(function)} raised {said} (--verbose shows where)") from errors[0]
    if not outcome:
        raise UserError(
            f"ppo.reward_functions: {_name(function)} took longer than {timeout:g} seconds for a batch "
            "(ppo.reward_timeout)"
        )
    return outcome[0]


def _first_bad(returned: Any, prompts: Sequence[str], responses: Sequence[str]) -> str:
    """The first response that has no finite number, if there is one for each."""
    values = list(returned) if isinstance(returned, Sequence | Tensor) else []
    if len(values) != len(responses):
        return ""
    for row, value in enumerate(values):
        if not _is_finite(value):
            pair = f"prompt {reprlib.repr(prompts[row])}, response {reprlib.repr(responses[row])}"
            return f"; of row {row}, {pair}, it is {reprlib.repr(value)}"
    return ""


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


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

"""Reward functions of the user's: found, called on a batch, and what they return looked at."""

from __future__ import annotations

import inspect
import math
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
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
_SHORT = reprlib.Repr()
_SHORT.maxstring = 120


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
    entries = map(WeightedFunction.of, specs)
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
        returned = _returned(function, prompts, responses, _arguments(function, columns or {}), timeout)
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


def _returned(
    function: RewardFunction,
    prompts: list[str],
    responses: list[str],
    columns: Mapping[str, Sequence[Any]],
    timeout: float | None,
) -> Any:
    """What a function returns for a batch.

    Raises:
        UserError: it raises, and the line says for which row; or it takes too long.
    """

    def of_rows(rows: range) -> Any:
        part = slice(rows.start, rows.stop)
        named = {name: values[part] for name, values in columns.items()}
        return function(prompts[part], responses[part], **named)

    try:
        return _within(timeout, lambda: function(prompts, responses, **columns))
    except TimeoutError:
        raise UserError(
            f"ppo.reward_functions: {_name(function)} took longer than {timeout:g} seconds for a batch of "
            f"{len(responses)}, which begins with {_pair(0, prompts, responses)} (ppo.reward_timeout)"
        ) from None
    except _Raised as raised:
        error = raised.error
    if is_out_of_memory(error):
        raise error
    try:
        row = _within(timeout, lambda: _row_that_raises(of_rows, range(len(responses))))
        where = "for no row alone" if row is None else f"for {_pair(row, prompts, responses)}"
    except TimeoutError:
        where = f"for a batch which begins with {_pair(0, prompts, responses)}"
    raise UserError(
        f"ppo.reward_functions: {_name(function)} raised {type(error).__name__}: {first_line(error)}, {where} "
        "(--verbose shows where)"
    ) from error


class _Raised(Exception):  # noqa: N818  # what it is
    """A function of the user's has raised this, whatever it is."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _within(timeout: float | None, call: Callable[[], Any]) -> Any:
    """What a call returns. One that does not return in time is left behind in its thread, which ends with us.

    A thread begins on the first device and with gradients, whatever holds in this one.

    Raises:
        TimeoutError: it has not returned after so many seconds.
        _Raised: it raises.
    """
    outcome: list[Any] = []
    errors: list[BaseException] = []
    gradients = torch.is_grad_enabled()
    device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.accelerator.set_device_index(device)
            with torch.set_grad_enabled(gradients):
                outcome.append(call())
        except (Exception, SystemExit) as error:
            errors.append(error)

    if timeout is None:
        run()
    else:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(timeout)
    if errors:
        raise _Raised(errors[0])
    if not outcome:
        raise TimeoutError
    return outcome[0]


def _row_that_raises(call: Callable[[range], Any], rows: range) -> int | None:
    """The first row of a batch whose call raises that it does so for alone; None if it takes several.

    By halves, since a function may be slow: at most twice the time of the batch.
    """
    while len(rows) > 1:
        half = len(rows) // 2
        raising = next((part for part in (rows[:half], rows[half:]) if _raises(call, part)), None)
        if raising is None:
            return None
        rows = raising
    return rows.start


def _raises(call: Callable[[range], Any], rows: range) -> bool:
    try:
        call(rows)
    except (Exception, SystemExit):
        return True
    return False


def _first_bad(returned: Any, prompts: Sequence[str], responses: Sequence[str]) -> str:
    """The first response that has no finite number, if there is one for each."""
    values = list(returned) if isinstance(returned, Sequence | Tensor) else []
    if len(values) != len(responses):
        return ""
    for row, value in enumerate(values):
        if not _is_finite(value):
            return f"; of {_pair(row, prompts, responses)}, it is {reprlib.repr(value)}"
    return ""


def _pair(row: int, prompts: Sequence[str], responses: Sequence[str]) -> str:
    """A row of a batch, with as much of its texts as tells it from others."""
    return f"row {row}, prompt {_SHORT.repr(prompts[row])}, response {_SHORT.repr(responses[row])}"


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

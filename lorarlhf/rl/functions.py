"""Reward functions by their names: from modules of the project, or from packages that the recipe requires.

Nothing else is imported. The standard library has functions that run what they are given, and so have many packages;
both are on the path of every recipe, whoever wrote it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import site
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError, first_line

logger = logging.getLogger(__name__)


class NotRequiredError(UserError):
    """The function is of an installed package that the recipe does not name."""

    def __init__(self, name: str, package: str) -> None:
        super().__init__(
            f"ppo.reward_functions: '{name}' is of the installed package {package}, which the recipe does not name; "
            f"write requires: [{package}] into it, if its code is to run"
        )
        self.package = package


def import_function(name: str, requires: Sequence[str]) -> Callable[..., Any]:
    """The function that `package.module:function` names; says which file it is from.

    Args:
        requires: packages that may be taken beside modules below the current folder.

    Raises:
        UserError: there is none, or it is from elsewhere.
    """
    check_module(name, requires)
    module_name, function_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(
            f"ppo.reward_functions: cannot import '{name}': {first_line(error)}; "
            "run from the folder that holds the module, or install it"
        ) from None
    if not callable(function):
        raise UserError(f"ppo.reward_functions: '{name}' is no function but of type {type(function).__name__}")
    if inspect.isroutine(function) or inspect.isclass(function):  # a module also has what it imports from others
        _check_home(name, function.__module__ or "builtins", requires)
    _say_where(name, getattr(module, "__file__", None) or "a folder of modules")
    return function  # type: ignore[no-any-return]


def check_module(name: str, requires: Sequence[str]) -> None:
    """See that the module of `package.module:function` may be imported and, of a dotted one, its top is there.

    Nothing is imported, so that dry runs can ask.

    Raises:
        UserError: it is not there, or from elsewhere.
    """
    if "" not in sys.path:
        sys.path.append("")  # the current folder; last, so that no file in it stands in for an installed module
    _check_home(name, name.partition(":")[0], requires)


def packages_of(name: str) -> list[str]:
    """The installed packages that a recipe has to require for a function; none for one of the project. Imports it.

    Raises:
        UserError: there is no such function, or it is of Python itself.
    """
    packages: list[str] = []
    while True:
        try:
            import_function(name, packages)
        except NotRequiredError as error:
            packages.append(error.package)
        else:
            return packages


@functools.cache
def _say_where(name: str, file: str) -> None:
    """Once a process: a recipe's stages each import its functions."""
    logger.info("ppo.reward_functions: %s from %s", name, file)


def _check_home(name: str, module: str, requires: Sequence[str]) -> None:
    """Look without importing: only the top of a dotted name can be found so, and it says where the rest lies."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__main__":
        raise UserError(
            f"ppo.reward_functions: '{name}' is of Python itself ({top}), which gives no rewards; write a function of "
            "your own in a module in the current folder"
        )
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise UserError(
            f"ppo.reward_functions: cannot import '{name}': No module named '{top}'; "
            "run from the folder that holds the module, or install it"
        )
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    if top not in requires and not (places and all(map(_is_in_project, places))):
        raise NotRequiredError(name, top)


def _is_in_project(place: str) -> bool:
    """Below the current folder, and not in an environment that lies there too."""
    path = Path(place).resolve()
    installed = [*sysconfig.get_paths().values(), site.getusersitepackages(), *site.getsitepackages()]
    return path.is_relative_to(Path.cwd()) and not any(
        path.is_relative_to(Path(folder).resolve()) for folder in installed
    )

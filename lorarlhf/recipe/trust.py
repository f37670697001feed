"""Which recipes may run code: what the user typed, what lies in their project, what ships, what they have said yes to.

Two keys run code: `model.trust_remote_code` that of a model, `ppo.reward_functions` that of a module. In a file from
elsewhere, a run's recipe.yaml included, they need `--trust`. The runs of one's own do not: where a run is begun, a note
in the user's own state folder says which code that was, by its name and the folder it was called from. Notes lie
outside runs, so that no run can bring one along.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Recipe
from lorarlhf.recipe.shipped import shipped_folder
from lorarlhf.recipe.yaml import KeyPath

REMOTE_CODE: KeyPath = ("model", "trust_remote_code")
FUNCTIONS: KeyPath = ("ppo", "reward_functions")
logger = logging.getLogger(__name__)


def check_code(
    recipe: Recipe, written_in: Mapping[KeyPath, tuple[Path, str]], of_run: bool, runs_functions: bool = True
) -> None:
    """Raise UserError if the recipe would run code that a file from elsewhere names.

    Args:
        written_in: file, and file with line, of each key that a file gave; what options gave is not among them.
        of_run: a run brought the recipe along; else somebody named it.
        runs_functions: False where no reward is computed, so that the functions are names and no more.
    """
    for key, code in _code_of(recipe).items():
        if key not in written_in or (key == FUNCTIONS and not runs_functions):
            continue
        file, place = written_in[key]
        if _is_shipped(file) or (_in_project(file) and not of_run) or _note(key, code).is_file():
            continue
        what = "code of the model" if key == REMOTE_CODE else "code of the modules it names"
        raise UserError(
            f"{place}: {'.'.join(map(str, key))}: runs {what}, and this file may be from elsewhere; read it, then give "
            f"--trust, or leave the code out: {'false' if key == REMOTE_CODE else '[]'} in its place, there or by --set"
        )


def remember(recipe: Recipe) -> None:
    """Note that the user let this code run from the current folder, so that later commands there need not ask again."""
    for key, code in _code_of(recipe).items():
        note = _note(key, code)
        try:
            note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            note.write_text(f"{_said(key, code)}\n", encoding="utf-8")  # for people who look
        except OSError as error:
            logger.warning("%s: cannot be written (%s): later commands on this run need --trust", note, error.strerror)


def _code_of(recipe: Recipe) -> dict[KeyPath, Any]:
    """Of each key that runs code, all that says which."""
    code: dict[KeyPath, Any] = {}
    if recipe.model.trust_remote_code:
        code[REMOTE_CODE] = [recipe.model.name, recipe.model.revision]
    if recipe.ppo.reward_functions:
        code[FUNCTIONS] = [recipe.requires, recipe.model_dump(mode="json")["ppo"]["reward_functions"]]
    return code


def _said(key: KeyPath, code: Any) -> str:
    return json.dumps([str(Path.cwd()), key, code])


def _note(key: KeyPath, code: Any) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "lorarlhf" / "trusted" / hashlib.sha256(_said(key, code).encode()).hexdigest()


def _is_shipped(file: Path) -> bool:
    return file.resolve().is_relative_to(shipped_folder("recipes").resolve())


def _in_project(file: Path) -> bool:
    """Whether a file lies below the current folder; below a home folder or the root lies what is no project."""
    here = Path.cwd()
    return file.resolve().is_relative_to(here) and here not in (Path.home().resolve(), Path(here.anchor))

"""A new recipe's file."""

from __future__ import annotations

from pathlib import Path

from lorarlhf.errors import UserError
from lorarlhf.recipe.schema import COPIED_SCHEMA, schema_text, with_modeline


def check_new_recipe(path: Path, suggested: str) -> None:
    """Raise UserError if no new recipe can have this name.

    Args:
        suggested: what to call a file in `path` if that is a folder.
    """
    if path.suffix not in (".yaml", ".yml"):
        example = path / f"{suggested}.yaml" if path.is_dir() else Path(f"{path}.yaml")
        raise UserError(f"{path}: a recipe's file must end in .yaml; write for example {example}")
    if path.exists():
        raise UserError(f"{path}: exists already and is not overwritten; choose another name")


def write_recipe(path: Path, text: str, suggested: str) -> None:
    """Write a recipe, and its schema beside it.

    Raises:
        UserError: as `check_new_recipe`, or it cannot be written.
    """
    check_new_recipe(path, suggested)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(with_modeline(text, COPIED_SCHEMA))
        (path.parent / COPIED_SCHEMA).write_text(schema_text(), encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{error.filename}: exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another place") from error

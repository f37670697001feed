"""A new recipe's file."""

from __future__ import annotations

from pathlib import Path

from lorarlhf.errors import UserError
from lorarlhf.recipe.schema import COPIED_SCHEMA, schema_text, with_modeline


def write_recipe(path: Path, text: str, suggested: str) -> None:
    """Write a recipe, and its schema beside it.

    Args:
        suggested: what to call a file in `path` if that is a folder.

    Raises:
        UserError: no name for a recipe, there is a file already, or it cannot be written.
    """
    if path.suffix not in (".yaml", ".yml"):
        example = path / f"{suggested}.yaml" if path.is_dir() else Path(f"{path}.yaml")
        raise UserError(f"{path}: a recipe's file must end in .yaml; write for example {example}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(with_modeline(text, COPIED_SCHEMA))
        (path.parent / COPIED_SCHEMA).write_text(schema_text(), encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{error.filename}: exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another place") from error

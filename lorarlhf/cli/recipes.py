"""`lorarlhf recipes`: look at the recipes that ship, and copy one to change it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lorarlhf.cli.options import recipe_names
from lorarlhf.errors import UserError
from lorarlhf.recipe.shipped import find_recipe, list_recipes

recipes_app = typer.Typer(help="Look at the recipes that ship with lorarlhf, and copy one.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(help="A name from `lorarlhf recipes list`.", show_default=False, autocompletion=recipe_names),
]


@recipes_app.command("list")
def list_() -> None:
    """List the recipes and what each is for."""
    recipes = list_recipes()
    console = Console()
    if console.is_terminal:
        table = Table("Recipe", "What it is for")
        for recipe in recipes:
            table.add_row(f"[bold]{recipe.name}[/]", recipe.summary)
        console.print(table)
        return
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        typer.echo(f"{recipe.name:{width}}  {recipe.summary}")


@recipes_app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A recipe's name or path.", show_default=False, autocompletion=recipe_names)
    ],
) -> None:
    """Print a recipe with its comments."""
    from rich.syntax import Syntax  # loads Pygments, which `--help` need not wait for

    text = find_recipe(name).read_text(encoding="utf-8")
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        typer.echo(text, nl=False)


@recipes_app.command()
def copy(
    name: Name,
    path: Annotated[Path, typer.Argument(help="Where to: a file that ends in .yaml.", show_default=False)],
) -> None:
    """Copy a recipe to a file of your own; an existing file is never overwritten."""
    if name.endswith((".yaml", ".yml")):  # its `extends` may be a path, which would not resolve from elsewhere
        raise UserError(f"{name}: `copy` is for recipes that ship with lorarlhf; copy your own files with cp")
    text = find_recipe(name).read_text(encoding="utf-8")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: a recipe's file must end in .yaml; write for example {_suggested(path, name)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{error.filename}: exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another place") from error
    typer.echo(f"Wrote {path}. Change it, then use it with --recipe {path}")


def _suggested(path: Path, name: str) -> Path:
    return path / f"{Path(name).name}.yaml" if path.is_dir() else Path(f"{path}.yaml")

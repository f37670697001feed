"""`lorarlhf recipes`: look at the recipes that ship, and copy one to change it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lorarlhf.cli.options import Set, recipe_names
from lorarlhf.errors import UserError
from lorarlhf.recipe.catalogue import catalogue
from lorarlhf.recipe.full import full_text, header_of
from lorarlhf.recipe.keys import Key, dotted, find_key, keys_of
from lorarlhf.recipe.load import Traced, trace_recipe
from lorarlhf.recipe.schema import schema_text
from lorarlhf.recipe.shipped import find_recipe, list_recipes
from lorarlhf.recipe.written import write_recipe
from lorarlhf.recipe.yaml import flow

recipes_app = typer.Typer(help="Look at the recipes that ship with lorarlhf, and copy one.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(help="A name from `lorarlhf recipes list`.", show_default=False, autocompletion=recipe_names),
]


@recipes_app.command("list")
def list_() -> None:
    """List the recipes: card, stages, licence, model and data, and time and result where they are known."""
    entries = catalogue()
    firsts = [(entry.name, entry.card, entry.stages) for entry in entries]
    widths = [max(map(len, column)) for column in zip(*firsts, strict=True)]
    console = Console()
    for entry, texts in zip(entries, firsts, strict=True):
        first = "  ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True))
        model = f"{entry.model} on {entry.data}"
        more = [f"{about}: {said}" for about, said in (("time", entry.time), ("expect", entry.expected)) if said]
        if not console.is_terminal:  # a line each, to search in
            typer.echo("  ".join([first, f"{entry.licence:10}", model, *more]))
            continue
        console.print(f"[bold]{first}[/]  {entry.licence}", highlight=False)
        for line in (model, *more):
            typer.echo(filled(line, "  "))


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
    full: Annotated[
        bool, typer.Option("--full", help="Every key with what it does, nothing taken from another recipe.")
    ] = False,
) -> None:
    """Copy a recipe to a file of your own, with the schema beside it that editors complete its keys from.

    An existing recipe is never overwritten.
    """
    own = name.endswith((".yaml", ".yml"))
    if own and not full:  # its `extends` may be a path, which would not resolve from elsewhere
        raise UserError(
            f"{name}: `copy` is for recipes that ship with lorarlhf; copy your own files with cp, or --full"
        )
    text = find_recipe(name).read_text(encoding="utf-8")
    if full:
        text = full_text(trace_recipe(name).recipe, header_of(text))  # a copy runs no code
    write_recipe(path, text, suggested=Path(name).stem)
    typer.echo(f"Wrote {path}. Change it, then use it with --recipe {path}")


@recipes_app.command()
def explain(
    key: Annotated[
        str, typer.Argument(help="As `ppo.kl_coef`, or a section as `ppo`.", show_default="the sections")
    ] = "",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Say its value in this recipe, and what file and line set it.")
    ] = None,
    set_: Set = None,
) -> None:
    """Say what a key of a recipe does, what it takes and what it is if left out."""
    if key in [info.name for info in list_recipes()] or key.endswith((".yaml", ".yml")):
        raise UserError(f"{key}: a recipe, and no key of one; `lorarlhf recipes show {key}` prints it")
    found = find_key(key) if key else None
    traced = trace_recipe(recipe, sets=set_ or []) if recipe is not None else None
    if found is not None:
        default = f"; default {found.default}" if found.default and not found.field.is_required() else ""
        typer.echo(f"{dotted(found.path)}: {found.kind}{default}")
        typer.echo(filled(found.description))
    if traced is not None and found is not None and not found.keys:
        typer.echo(f"in {recipe}: {_value(traced, found)}")
    keys = keys_of() if found is None else found.keys
    width = max((len(one.name) for one in keys), default=0)
    for one in keys:
        label = f"  {one.name:{width}}  "
        if traced is None or (found is None and one.keys):
            typer.echo(filled(one.description, label))
        else:
            typer.echo(label + _value(traced, one))


def _value(traced: Traced, key: Key) -> str:
    return "  ".join([flow(traced.value(key.path)), traced.origin(key.path) or "(default)"])


@recipes_app.command()
def validate(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Files or names.", metavar="[PATH]...", show_default="all that ship")
    ] = None,
) -> None:
    """Check recipes: every fault with its file and line, and exit status 2 if there is one."""
    faults: list[str] = []
    for recipe in recipes or [info.name for info in list_recipes()]:
        try:
            trace_recipe(recipe)
        except UserError as error:
            faults += str(error).splitlines()
        else:
            typer.echo(f"{recipe}: valid")
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))  # several recipes may extend a faulty one


@recipes_app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors and other tools."""
    typer.echo(schema_text(), nl=False)


def filled(text: str, label: str = "") -> str:
    """Text in as many columns as there are, under a label as wide as its indent; unbroken when piped."""
    console = Console()
    if not console.is_terminal:
        return label + text
    return textwrap.fill(text, console.width, initial_indent=label, subsequent_indent=" " * len(label))

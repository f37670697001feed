"""Options that several commands have, spelt and explained once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from lorarlhf.data.endings import READ, listed
from lorarlhf.recipe.shipped import list_recipes

SOURCE = f"Hub id, a {listed(READ)} file, a folder that `datasets` can read, or a mapping as in a recipe."

MOST_SEED = 2**32 - 1  # what numpy's generators take


def finite(value: float | None) -> float | None:
    """Of a number that has a least value: neither infinity nor NaN, which no least value stops."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Names of shipped recipes that begin so, each with what it is for, for a shell to complete."""
    return [(info.name, info.summary) for info in list_recipes() if info.name.startswith(incomplete)]


RECIPE_HELP = "A name from `lorarlhf recipes list`, or your .yaml file."
RecipeOption = Annotated[str, typer.Option("--recipe", help=RECIPE_HELP, autocompletion=recipe_names)]
OptionalRecipe = Annotated[
    str | None,
    typer.Option("--recipe", help=RECIPE_HELP, show_default="the run's own", autocompletion=recipe_names),
]
Model = Annotated[str | None, typer.Option(help="Hub id or folder of the base model, instead of the recipe's.")]
Dataset = Annotated[str | None, typer.Option(help=f"For this stage: {SOURCE}")]
OutputDir = Annotated[
    Path | None, typer.Option(help="The run's folder, shared by its stages.", show_default="runs/NAME of the recipe")
]
RunFolder = Annotated[Path, typer.Option("--run", help="The run's folder.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe.")]
Checkpoint = Annotated[
    str,
    typer.Option(
        metavar="best|last|N",
        help="What was kept, the newest checkpoint, or that of iteration (sft, reward: step) N.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of an interrupted run.")]
AllowOtherBase = Annotated[
    bool, typer.Option("--allow-other-base", help="Load adapters that were trained on another base model, too.")
]
LogFile = Annotated[
    Path | None,
    typer.Option(help="Write what is said there, and go on when the terminal closes.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan; load no weights.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Let a recipe or run from elsewhere run the code it names; read it first.")
]

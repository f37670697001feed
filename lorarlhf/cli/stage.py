"""What `lorarlhf sft`, `reward` and `ppo` share: which recipe and folder they mean, and what a dry run prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from lorarlhf.errors import UserError
from lorarlhf.recipe.load import Option, dump_recipe, load_recipe
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.recipe.shipped import exists, find_recipe
from lorarlhf.recipe.stages import STAGES


def resolve(
    stage: Stage,
    recipe: str,
    model: str | None,
    dataset: str | None,
    output_dir: Path | None,
    sets: list[str] | None,
    trust: bool,
) -> tuple[Recipe, Path]:
    """The recipe with all that the options change, and the folder of the run."""
    named: dict[str, Option] = {}
    if model is not None:
        named["model.name"] = Option("--model", model)
    if dataset is not None:  # the recipe's own held-out file belongs to its own data
        key = f"data.{STAGES[stage].data_key}"
        named |= {key: Option("--dataset", dataset), f"{key}_test": Option("--dataset", None)}
    return load_recipe(recipe, named, sets or [], trust), run_folder(recipe, output_dir)


def run_folder(recipe: str, output_dir: Path | None) -> Path:
    """Where a run lies: where it is told to, or under the recipe's name. Raises UserError if it cannot lie there."""
    folder = output_dir or Path("runs") / find_recipe(recipe).stem
    for place in (folder, *folder.parents):
        if exists(place) and not place.is_dir():
            raise UserError(f"--output-dir {folder}: {place} is a file, not a folder; choose another place")
    return folder


def print_dry_run(stages: Sequence[Stage], recipe: Recipe, run_path: Path, reward: str | None = None) -> None:
    """The recipe, what would be done, and the memory it would take if the model's config is here already.

    Raises:
        UserError: what `check_sources` finds, without asking the Hub.
    """
    from lorarlhf.data.examples import check_sources
    from lorarlhf.run import Run
    from lorarlhf.stages.dry_run import has_model_config, steps

    run = Run(run_path)
    typer.echo(dump_recipe(recipe))
    for stage in stages:
        typer.echo(
            "\n".join(f"would {verb:6} {what}" for verb, what in steps(stage, recipe, run, reward, before=stages))
        )
        if STAGES[stage].source(recipe.data):
            check_sources(recipe.data, STAGES[stage].data_keys, online=False)
    if not has_model_config(recipe.model):
        typer.echo("memory       see `lorarlhf plan`, which reads the model's config from the Hub")
        return
    from lorarlhf.cli.plan import show_fit
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.backbone.load import load_model_config
    from lorarlhf.stages.inputs import check_settings

    for stage in stages:
        check_settings(stage, recipe)
    model_config = load_model_config(recipe.model)
    for stage in stages:
        starts_from = STAGES[stage].starts_from
        reference = starts_from is None or starts_from in stages or run.has_adapter(starts_from)
        show_fit(recipe, model_config, stage, reference=reference)

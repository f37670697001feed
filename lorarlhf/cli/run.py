"""`lorarlhf run`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from lorarlhf.cli.options import DryRun, LogFile, Model, OptionalRecipe, OutputDir, Set, Trust
from lorarlhf.cli.stage import log_to, own_recipe, print_dry_run, run_folder
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import Option, load_recipe
from lorarlhf.recipe.sections import STEPS
from lorarlhf.recipe.stages import POLICY_STAGES, trained_by


def run(
    recipe: OptionalRecipe = None,
    model: Model = None,
    output_dir: OutputDir = None,
    stages: Annotated[
        str | None, typer.Option(metavar=",".join(STEPS), help="Some of these.", show_default="as in the recipe")
    ] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume/--anew", help="Pass over what is done, or move it aside and do all again.")
    ] = True,
    dry_run: DryRun = False,
    log_file: LogFile = None,
    trust: Trust = False,
) -> None:
    """Do all that a recipe says, in one process; the same line goes on after an interruption."""
    named: dict[str, Option] = {}
    if model is not None:
        named["model.name"] = Option("--model", model)
    if stages is not None:
        named["stages"] = Option("--stages", [stage.strip() for stage in stages.split(",")])
    if recipe is None and output_dir is None:
        raise UserError(
            "--recipe: missing; give a name from `lorarlhf recipes list` or a file of your own, or --output-dir of a "
            "run that is to go on"
        )
    if recipe is None:
        resolved, run_path = own_recipe(output_dir, named, set_, trust=trust)
    else:
        resolved, run_path = load_recipe(recipe, named, set_ or [], trust), run_folder(recipe, output_dir)
    if dry_run:
        from lorarlhf.run import Run
        from lorarlhf.stages.states import states_of

        training = trained_by(resolved)
        states = states_of(resolved, Run(run_path, trust), training) if resume else {}
        name = recipe or str(run_path / "recipe.yaml")
        print_dry_run(training, name, resolved, run_path, trust=trust, states=states)
        return
    log_to(log_file)
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.run import Run
    from lorarlhf.stages.pipeline import run_recipe

    done = Run(run_path, trust)
    run_recipe(resolved, done, resume)
    if done.last_stage() in POLICY_STAGES:
        typer.echo(f"run: to talk with what has come out: lorarlhf chat --run {shlex.quote(str(run_path))}")

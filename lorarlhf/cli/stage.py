"""What `lorarlhf sft`, `reward` and `ppo` share: which recipe and folder they mean, and what a dry run prints."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from lorarlhf.errors import UserError
from lorarlhf.recipe.load import Option, dump_recipe, load_recipe, source_value
from lorarlhf.recipe.sections import Recipe, Stage, Step
from lorarlhf.recipe.shipped import find_recipe
from lorarlhf.recipe.stages import STAGES


def resolve(
    stage: Stage,
    recipe: str | None,
    model: str | None,
    dataset: str | None,
    output_dir: Path | None,
    sets: list[str] | None,
    resume: bool,
    trust: bool,
) -> tuple[Recipe, Path]:
    """The recipe with all that the options change, and the folder of the run; what goes on takes the run's own."""
    named: dict[str, Option] = {}
    if model is not None:
        named["model.name"] = Option("--model", model)
    if dataset is not None:  # the recipe's own held-out file belongs to its own data
        key = f"data.{STAGES[stage].data_key}"
        named |= {key: Option("--dataset", source_value(dataset)), f"{key}_test": Option("--dataset", None)}
    if recipe is None:
        if not resume:
            raise UserError(
                "--recipe: missing; give a name from `lorarlhf recipes list`, or --resume to go on with a run"
            )
        return own_recipe(output_dir, named, sets, stage, trust)
    return load_recipe(recipe, named, sets or [], trust), run_folder(recipe, output_dir)


def own_recipe(
    output_dir: Path | None,
    named: dict[str, Option],
    sets: list[str] | None,
    stage: Stage | None = None,
    trust: bool = False,
) -> tuple[Recipe, Path]:
    """What a run, or a stage of it, was begun with, with all that the options change, and its folder."""
    from lorarlhf.run import Run

    if output_dir is None:
        raise UserError("--output-dir: missing; without --recipe it says which run is to go on")
    return Run(output_dir, trust).read_recipe(named, sets or [], stage), output_dir


def log_to(file: Path | None) -> None:
    """From now on, what is said goes to the end of a file, and the terminal may close."""
    if file is None:
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise UserError(f"--log-file {file}: cannot be written: {error.strerror}") from error
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(descriptor, number)
    os.close(descriptor)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def run_folder(recipe: str, output_dir: Path | None) -> Path:
    """Where a run lies: where it is told to, or under the recipe's name."""
    return output_dir or Path("runs") / find_recipe(recipe).stem


def print_dry_run(
    stages: Sequence[Stage],
    name: str,
    recipe: Recipe,
    run_path: Path,
    reward: str | None = None,
    resume: bool = False,
    trust: bool = False,
    states: Mapping[Step, str] | None = None,
) -> None:
    """The recipe, what would be done, and the memory it would take if the model's config is here already.

    Args:
        name: of the recipe, as it was asked for.
        states: how far stages are (`lorarlhf.stages.states`): what is done is passed over, what was begun goes on.

    Raises:
        UserError: what `check_data` finds, without asking the Hub, `check_outputs` or `check_kernel`; what `steps`
            raises.
    """
    from lorarlhf.run import Run
    from lorarlhf.stages.data_sources import check_data
    from lorarlhf.stages.dry_run import has_model_config, steps
    from lorarlhf.stages.outputs import check_kernel, check_outputs

    run, states = Run(run_path, trust), states or {}
    typer.echo(dump_recipe(recipe))
    check_kernel(recipe.model)
    for stage in (stage for stage in stages if states.get(stage) == "done"):
        typer.echo(f"done         {stage}, in {run.stage(stage)}")
    stages = [stage for stage in stages if states.get(stage) != "done"]
    for stage in stages:
        check_outputs(stage, recipe, run.path)
        for verb, what in steps(stage, recipe, run, reward, stages, resume or states.get(stage) == "begun"):
            typer.echo(f"would {verb:6} {what}")
        if STAGES[stage].source(recipe.data):
            check_data(stage, recipe, online=False)
    if not has_model_config(recipe.model):
        typer.echo(f"memory       see `lorarlhf plan --recipe {name}`, which reads the model's config from the Hub")
        return
    from lorarlhf.cli.plan import show_fit
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.backbone.load import load_model_config
    from lorarlhf.stages.inputs import check_optimizer_name

    for stage in stages:
        check_optimizer_name(getattr(recipe, stage), stage)
    model_config = load_model_config(recipe.model)
    for stage in stages:
        starts_from = STAGES[stage].starts_from
        reference = starts_from is None or starts_from in stages or run.has_adapter(starts_from)
        show_fit(recipe, model_config, stage, reference=reference)

"""`lorarlhf evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorarlhf.cli.options import SOURCE, AllowOtherBase, Checkpoint, RunFolder, Set, Trust
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Quantization, Stage

if TYPE_CHECKING:
    from lorarlhf.run import Run


def evaluate(
    run: RunFolder,
    stage: Annotated[Stage | None, typer.Option(help="What to evaluate.", show_default="the last stage done")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help=f"{SOURCE} All of it, or its test split.", show_default="held-out data"),
    ] = None,
    set_: Set = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of an export of the stage, in its place.", show_default=False)
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Of --model, as it is computed with.", show_default="none")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Also compare a policy by what it was not trained against: folder of another run (its reward model), "
            "Hub id or folder of a sequence classifier, or address of an OpenAI-compatible endpoint.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Model of an endpoint that judges.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to.",
            show_default="RUN/STAGE/evaluation.json, of --model evaluation_of_model.json, of --frontier frontier.json",
        ),
    ] = None,
    checkpoint: Checkpoint = "best",
    frontier: Annotated[
        bool,
        typer.Option("--frontier", help="Of a PPO run: reward, and judge's reward, over KL, at each checkpoint."),
    ] = False,
    best_of: Annotated[
        int | None,
        typer.Option(help="Of --frontier: beside it the best of up to so many.", min=1, show_default="16; 1: none"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Of --frontier: its figure, a .png or .svg file.", show_default=False)
    ] = None,
    allow_other_base: AllowOtherBase = False,
    trust: Trust = False,
) -> None:
    """Say how well a reward model predicts held-out comparisons, or what a policy has come to answer."""
    if model is None and quantization is not None:
        raise UserError("--quantization: a run has its recipe's; it goes with --model")
    if model is not None and checkpoint != "best":
        raise UserError("--checkpoint: says which adapter of the run is meant; --model stands in its place")
    if judge is None and judge_model is not None:
        raise UserError("--judge-model: goes with the address of an endpoint, --judge http://localhost:11434/v1")
    if not frontier and (best_of is not None or plot is not None):
        raise UserError(f"{'--plot' if best_of is None else '--best-of'}: goes with --frontier")
    if out is not None:
        _check_out(out)
    from lorarlhf.run import Run

    folder = Run(run, trust)
    if frontier:
        if stage not in (None, "ppo") or model is not None or checkpoint != "best":
            raise UserError("--frontier: measures all checkpoints of ppo; leave out --stage, --model and --checkpoint")
        if judge_model is not None:
            raise UserError(
                "--judge-model: is of an endpoint, which gives no scores for --frontier to draw; leave it out"
            )
        _frontier(folder, dataset, set_ or [], judge, best_of, plot, out, allow_other_base)
        return
    _stage(
        folder,
        stage or folder.last_stage(),
        dataset,
        set_ or [],
        model,
        quantization or "none",
        checkpoint,
        judge,
        judge_model,
        out,
        allow_other_base,
    )


def _stage(
    run: Run,
    stage: Stage,
    dataset: str | None,
    sets: list[str],
    model: str | None,
    quantization: Quantization,
    checkpoint: str,
    judge: str | None,
    judge_model: str | None,
    out: Path | None,
    allow_other_base: bool,
) -> None:
    from rich.console import Console

    from lorarlhf.run import other_test_data

    named = {} if dataset is None else other_test_data(stage, "--dataset", dataset)
    recipe = run.read_recipe(named, sets, stage)
    adapter = run.adapter(stage, checkpoint)  # says so before anything is loaded
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.evaluation.report import show_samples
    from lorarlhf.stages.evaluate import evaluate_run, report_lines
    from lorarlhf.stages.evaluate_model import evaluate_model
    from lorarlhf.stages.judges import open_judge

    console = Console()
    judging = None if judge is None else open_judge(judge, judge_model, run, console, allow_other_base)
    if model is None:
        evaluation = evaluate_run(
            run, recipe, stage, console, checkpoint=checkpoint, allow_other_base=allow_other_base, judge=judging
        )
    else:
        evaluation = evaluate_model(
            run, recipe, stage, model, quantization, console, allow_other_base=allow_other_base, judge=judging
        )
    if samples := evaluation.get("samples"):
        prompts, before, after = ([row[key] for row in samples] for key in ("prompt", "before", "after"))
        show_samples(console, prompts, before, after)
    typer.echo("\n".join(f"  {name:18} {text}" if name else text for name, text in report_lines(evaluation)))
    of_another = "" if adapter == run.stage(stage) else f"-{adapter.parent.name}"
    name = "evaluation_of_model.json" if model else f"evaluation{of_another}.json"
    _write(out or run.stage(stage) / name, evaluation)


def _frontier(
    run: Run,
    dataset: str | None,
    sets: list[str],
    judge: str | None,
    best_of: int | None,
    plot: Path | None,
    out: Path | None,
    allow_other_base: bool,
) -> None:
    from rich.console import Console

    from lorarlhf.run import other_test_data

    named = {} if dataset is None else other_test_data("ppo", "--dataset", dataset)
    recipe = run.read_recipe(named, sets, "ppo")

    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.evaluation.frontier_figure import check_figure, draw_frontier
    from lorarlhf.evaluation.frontier_report import frontier_lines
    from lorarlhf.stages.frontier import BEST_OF, measure_frontier
    from lorarlhf.stages.judges import open_scoring_judge

    if plot is not None:
        check_figure(plot)
    judging = None if judge is None else open_scoring_judge(judge, run, allow_other_base)
    frontier = measure_frontier(run, recipe, Console(), judging, best_of or BEST_OF, allow_other_base=allow_other_base)
    typer.echo("\n".join(frontier_lines(frontier)))
    _write(out or run.stage("ppo") / "frontier.json", frontier)
    if plot is not None:
        try:
            draw_frontier(frontier, run.path.name, plot)
        except OSError as error:
            raise UserError(f"{plot}: cannot be written: {error.strerror}; give --plot another place") from error
        typer.echo(f"evaluate: drawn in {plot}")


def _check_out(path: Path) -> None:
    """Raise UserError if no file can come to lie there, before anything is computed for it."""
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file in it")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--out {path}: {place} cannot be written; give --out another place")


def _write(path: Path, evaluation: dict[str, Any]) -> None:
    from lorarlhf.run import write_json

    try:
        write_json(path, evaluation)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give --out another place") from error
    typer.echo(f"evaluate: written to {path}")

"""`lorarlhf evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarlhf.cli.options import SOURCE, AllowOtherBase, Checkpoint, RunFolder, Set
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Quantization, Stage


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
        typer.Option(help="Where to.", show_default="RUN/STAGE/evaluation.json, of a --model evaluation_of_model.json"),
    ] = None,
    checkpoint: Checkpoint = "best",
    allow_other_base: AllowOtherBase = False,
) -> None:
    """Say how well a reward model predicts held-out comparisons, or what a policy has come to answer."""
    if model is None and quantization is not None:
        raise UserError("--quantization: a run has its recipe's; it goes with --model")
    if model is not None and checkpoint != "best":
        raise UserError("--checkpoint: says which adapter of the run is meant; --model stands in its place")
    if judge is None and judge_model is not None:
        raise UserError("--judge-model: goes with the address of an endpoint, --judge http://localhost:11434/v1")
    from lorarlhf.run import Run, other_test_data, write_json

    folder = Run(run)
    chosen = stage or folder.last_stage()
    named = {} if dataset is None else other_test_data(chosen, "--dataset", dataset)
    recipe = folder.read_recipe(named, set_ or [], chosen)
    adapter = folder.adapter(chosen, checkpoint)  # says so before anything is loaded
    from rich.console import Console

    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.evaluation.report import show_samples
    from lorarlhf.stages.evaluate import evaluate_run, report_lines
    from lorarlhf.stages.evaluate_model import evaluate_model
    from lorarlhf.stages.judges import open_judge

    console = Console()
    judging = None if judge is None else open_judge(judge, judge_model, folder, console, allow_other_base)
    if model is None:
        evaluation = evaluate_run(
            folder,
            recipe,
            chosen,
            console,
            checkpoint=checkpoint,
            allow_other_base=allow_other_base,
            judge=judging,
        )
    else:
        evaluation = evaluate_model(
            folder,
            recipe,
            chosen,
            model,
            quantization or "none",
            console,
            allow_other_base=allow_other_base,
            judge=judging,
        )
    if samples := evaluation.get("samples"):
        prompts, before, after = ([row[key] for row in samples] for key in ("prompt", "before", "after"))
        show_samples(console, prompts, before, after)
    typer.echo("\n".join(f"  {name:18} {text}" if name else text for name, text in report_lines(evaluation)))
    of_another = "" if adapter == folder.stage(chosen) else f"-{adapter.parent.name}"
    path = out or folder.stage(chosen) / ("evaluation_of_model.json" if model else f"evaluation{of_another}.json")
    try:
        write_json(path, evaluation)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give --out another place") from error
    typer.echo(f"evaluate: written to {path}")

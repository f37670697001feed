"""`lorarlhf sft`."""

from __future__ import annotations

import typer

from lorarlhf.cli.options import Dataset, DryRun, Model, OutputDir, RecipeOption, Resume, Set
from lorarlhf.cli.stage import print_dry_run, resolve


def sft(
    recipe: RecipeOption,
    model: Model = None,
    dataset: Dataset = None,
    output_dir: OutputDir = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune the policy on demonstrations."""
    resolved, run_path = resolve("sft", recipe, model, dataset, output_dir, set_)
    if dry_run:
        print_dry_run(["sft"], recipe, resolved, run_path, resume=resume)
        return
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.run import Run
    from lorarlhf.stages.sft import result_line, train_sft

    summary = train_sft(resolved, Run(run_path), resume)
    typer.echo(f"sft: {result_line(summary)}; adapter in {run_path / 'sft'}")

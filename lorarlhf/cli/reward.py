"""`lorarlhf reward`."""

from __future__ import annotations

import typer

from lorarlhf.cli.options import Dataset, DryRun, LogFile, Model, OptionalRecipe, OutputDir, Resume, Set, Trust
from lorarlhf.cli.stage import log_to, print_dry_run, resolve


def reward(
    recipe: OptionalRecipe = None,
    model: Model = None,
    dataset: Dataset = None,
    output_dir: OutputDir = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    log_file: LogFile = None,
    trust: Trust = False,
) -> None:
    """Train a reward model on comparisons (or ratings)."""
    resolved, run_path = resolve("reward", recipe, model, dataset, output_dir, set_, resume, trust)
    if dry_run:
        name = recipe or str(run_path / "recipe.yaml")
        print_dry_run(["reward"], name, resolved, run_path, resume=resume, trust=trust)
        return
    log_to(log_file)
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.run import Run
    from lorarlhf.stages.reward import result_line, train_reward

    summary = train_reward(resolved, Run(run_path, trust), resume)
    typer.echo(f"reward: {result_line(summary)}; adapter in {run_path / 'reward'}")

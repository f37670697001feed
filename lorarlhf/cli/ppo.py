"""`lorarlhf ppo`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lorarlhf.cli.options import (
    AllowOtherBase,
    Dataset,
    DryRun,
    LogFile,
    Model,
    OptionalRecipe,
    OutputDir,
    Resume,
    Set,
    Trust,
)
from lorarlhf.cli.stage import log_to, print_dry_run, resolve


def ppo(
    recipe: OptionalRecipe = None,
    model: Model = None,
    dataset: Dataset = None,
    output_dir: OutputDir = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    log_file: LogFile = None,
    reward: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a reward adapter.", show_default="reward/ of the run")
    ] = None,
    engine: Annotated[
        Literal["lorarlhf", "trl"],
        typer.Option(help="Whose PPO loop: this project's, or TRL 1.12's on the same backbone, to compare."),
    ] = "lorarlhf",
    allow_other_base: AllowOtherBase = False,
    trust: Trust = False,
) -> None:
    """Improve the policy against the reward with PPO (or RLOO, GRPO: --set ppo.advantage_estimator=rloo)."""
    resolved, run_path = resolve("ppo", recipe, model, dataset, output_dir, set_, resume, trust)
    if dry_run:
        print_dry_run(["ppo"], recipe or str(run_path / "recipe.yaml"), resolved, run_path, reward, resume, trust)
        return
    log_to(log_file)
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from lorarlhf.evaluation.report import samples_table
    from lorarlhf.run import Run
    from lorarlhf.stages.ppo import result_lines, train_ppo

    summary = train_ppo(
        resolved, Run(run_path, trust), resume, reward, engine=engine, allow_other_base=allow_other_base
    )
    if best := summary["best"]:
        Console().print(samples_table(run_path / "ppo" / "samples.jsonl", best["iteration"]))
    for line in result_lines(summary, resolved.ppo):
        typer.echo(f"ppo: {line}")
    typer.echo(f"ppo: adapter in {run_path / 'ppo'}, samples in {run_path / 'ppo' / 'samples.jsonl'}")

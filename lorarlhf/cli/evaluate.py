"""`lorarlhf evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorarlhf.cli.options import DATA_KEY, SOURCE, RunFolder, Set
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import Option
from lorarlhf.recipe.sections import Stage


def evaluate(
    run: RunFolder,
    stage: Annotated[Stage | None, typer.Option(help="What to evaluate.", show_default="the last stage done")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help=f"{SOURCE} All of it, or its test split.", show_default="held-out data"),
    ] = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Where to.", show_default="RUN/STAGE/evaluation.json")] = None,
) -> None:
    """Say how well a reward model predicts held-out comparisons, or what a policy has come to answer."""
    from lorarlhf.run import Run, write_json

    folder = Run(run)
    chosen = stage or folder.last_stage()
    named = {} if dataset is None else {f"{DATA_KEY[chosen]}_test": Option("--dataset", dataset)}
    recipe = folder.read_recipe(named, set_ or [])
    folder.adapter(chosen)  # says so before anything is loaded
    from rich.console import Console

    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.evaluation.report import show_samples
    from lorarlhf.stages.evaluate import evaluate_run

    console = Console()
    found = evaluate_run(folder, recipe, chosen, console)
    if chosen == "reward":
        lines = _reward_lines(found)
    else:
        prompts, before, after = ([row[key] for row in found["samples"]] for key in ("prompt", "before", "after"))
        show_samples(console, prompts, before, after)
        lines = _policy_lines(found)
    typer.echo("\n".join(f"  {name:18} {text}" if name else text for name, text in lines))
    path = out or folder.stage(chosen) / "evaluation.json"
    try:
        write_json(path, found)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give --out another place") from error
    typer.echo(f"evaluate: written to {path}")


def _reward_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    if found["objective"] == "regression":
        correlation = found["eval_correlation"]
        return [
            ("", f"reward on {found['examples']:,} ratings of {found['data']}"),
            ("squared error", f"{found['eval_loss']:.3f}"),
            ("correlation", "undefined" if correlation is None else f"{correlation:.3f}"),
        ]
    return [
        ("", f"reward on {found['examples']:,} comparisons of {found['data']}"),
        ("accuracy", _share(found["eval_accuracy"], found["eval_accuracy_interval"])),
        ("longer wins", f"{found['longer_wins_accuracy']:.1%}"),
        ("margin", f"{found['eval_margin']:.3f}"),
        ("loss", f"{found['eval_loss']:.3f}"),
        ("calibration error", f"{found['eval_calibration_error']:.3f}"),
    ]


def _policy_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    before, after = found["before"], found["after"]
    named = {"reward": "reward", "entropy": "entropy", "response_length": "response length", "finished": "finished"}
    lines = [("", f"{found['stage']} against {found['reference']} on {found['prompts']:,} prompts of {found['data']}")]
    lines += [
        (name, f"{before[key]:.3f} -> {after[key]:.3f}") for key, name in named.items() if before[key] is not None
    ]
    lines.append(("KL", f"{after['kl']:.3f} nats a response"))
    if "win_rate" in found:
        lines.append(("wins by reward", _share(found["win_rate"], found["win_rate_interval"])))
    else:
        lines.append(("reward", "none: this run has no reward adapter and no ppo.reward_functions"))
    return lines


def _share(value: float, interval: list[float]) -> str:
    return f"{value:.1%}  (95%: {interval[0]:.1%} to {interval[1]:.1%})"

"""`lorarlhf sft`, `reward` and `ppo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorarlhf.cli.options import DATA_KEY, Dataset, DryRun, Model, OutputDir, RecipeOption, Resume, Set
from lorarlhf.recipe.load import Option, dump_recipe, load_recipe
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.recipe.shipped import find_recipe, resolve_path


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
    resolved, run_path = _resolve("sft", recipe, model, dataset, output_dir, set_)
    if dry_run:
        _print_plan("sft", resolved, run_path, None)
        return
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.run import Run
    from lorarlhf.stages.sft import train_sft

    summary = train_sft(resolved, Run(run_path), resume)
    if summary["eval_examples"]:
        result = (
            f"held-out loss {summary['eval_loss']:.3f}, perplexity {summary['eval_perplexity']:.2f} "
            f"on {summary['eval_examples']} examples"
        )
    else:
        result = "no held-out examples"
    typer.echo(f"sft: {result}; adapter in {run_path / 'sft'}")


def reward(
    recipe: RecipeOption,
    model: Model = None,
    dataset: Dataset = None,
    output_dir: OutputDir = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Train a reward model on comparisons (or ratings)."""
    resolved, run_path = _resolve("reward", recipe, model, dataset, output_dir, set_)
    if dry_run:
        _print_plan("reward", resolved, run_path, None)
        return
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.run import Run
    from lorarlhf.stages.reward import train_reward

    summary = train_reward(resolved, Run(run_path), resume)
    if not summary["eval_examples"]:
        result = "no held-out examples"
    elif resolved.reward.objective == "regression":
        result = (
            f"held-out error {summary['eval_loss']:.3f}, correlation {summary['eval_correlation'] or 0:.3f} "
            f"on {summary['eval_examples']} examples"
        )
    else:
        result = (
            f"held-out accuracy {summary['eval_accuracy']:.1%} (preferring the longer: "
            f"{summary['longer_wins_accuracy']:.1%}), margin {summary['eval_margin']:.2f} "
            f"on {summary['eval_examples']} pairs"
        )
    typer.echo(f"reward: {result}; adapter in {run_path / 'reward'}")


def ppo(
    recipe: RecipeOption,
    model: Model = None,
    dataset: Dataset = None,
    output_dir: OutputDir = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    reward: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a reward adapter.", show_default="reward/ of the run")
    ] = None,
    engine: Annotated[
        Literal["lorarlhf", "trl"],
        typer.Option(help="Whose PPO loop: this project's, or TRL 1.12's on the same backbone, to compare."),
    ] = "lorarlhf",
) -> None:
    """Improve the policy against the reward with PPO."""
    resolved, run_path = _resolve("ppo", recipe, model, dataset, output_dir, set_)
    if dry_run:
        _print_plan("ppo", resolved, run_path, reward)
        return
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from lorarlhf.evaluation.report import samples_table
    from lorarlhf.run import Run
    from lorarlhf.stages.ppo import train_ppo

    summary = train_ppo(resolved, Run(run_path), resume, reward, engine=engine)
    before, best = summary["before"], summary["best"]
    if best:
        Console().print(samples_table(run_path / "ppo" / "samples.jsonl", best["iteration"]))
        typer.echo(
            f"ppo: held-out reward {before['eval_reward']:.3f} -> {best['eval_reward']:.3f} at iteration "
            f"{best['iteration']}, KL {best['eval_kl']:.2f} nats a response"
        )
    typer.echo(f"ppo: adapter in {run_path / 'ppo'}, samples in {run_path / 'ppo' / 'samples.jsonl'}")


def _resolve(
    stage: Stage,
    recipe: str,
    model: str | None,
    dataset: str | None,
    output_dir: Path | None,
    sets: list[str] | None,
) -> tuple[Recipe, Path]:
    named: dict[str, Option] = {}
    if model is not None:
        named["model.name"] = Option("--model", model)
    if dataset is not None:  # the recipe's own held-out file belongs to its own data
        named[DATA_KEY[stage]] = Option("--dataset", dataset)
        named[f"{DATA_KEY[stage]}_test"] = Option("--dataset", None)
    resolved = load_recipe(recipe, named, sets or [])
    return resolved, output_dir or Path("runs") / find_recipe(recipe).stem


def _print_plan(stage: Stage, recipe: Recipe, run_path: Path, reward: str | None) -> None:
    typer.echo(dump_recipe(recipe))
    data, model = recipe.data, recipe.model
    source = {"sft": data.sft, "reward": data.preferences, "ppo": data.prompts or data.preferences}[stage]
    lines = [
        f"would load   {model.name} ({model.quantization}), once",
        f"would train  {stage} on {source or f'(set {DATA_KEY[stage]} or --dataset)'}",
        f"would write  {run_path / stage}",
    ]
    has_sft = (run_path / "sft" / "adapter_config.json").is_file()
    if stage == "ppo":
        lines.insert(1, f"would start  from {run_path / 'sft' if has_sft else 'the bare base model'}")
        lines.insert(
            2, f"would score  with {reward or run_path / 'reward'}, {len(recipe.ppo.reward_functions)} functions"
        )
    typer.echo("\n".join(lines))
    if not _has_config(recipe):
        typer.echo("memory       see `lorarlhf plan`, which reads the model's config from the Hub")
        return
    from lorarlhf.cli.plan import show_fit
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.backbone.load import load_model_config

    show_fit(recipe, load_model_config(recipe.model), stage, reference=stage != "ppo" or has_sft)


def _has_config(recipe: Recipe) -> bool:
    """Whether the model's config is here already: a dry run asks nobody for it."""
    from huggingface_hub import try_to_load_from_cache

    path = resolve_path(recipe.model.name)
    if Path(path).is_dir():
        return True
    return isinstance(try_to_load_from_cache(path, "config.json", revision=recipe.model.revision), str)

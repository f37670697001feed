"""`lorarlhf plan`: what a recipe takes, and whether it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorarlhf.cli.options import Model, RecipeOption, Set, Trust, finite
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import Option, load_recipe
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.recipe.stages import STAGES, trained_by

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedConfig

    from lorarlhf.planner.fit import Fit

GIB = 2**30
KINDS = ("backbone", "adapters", "optimizer", "gradients", "kv cache", "activations", "logits", "trunk states")


def plan(
    recipe: RecipeOption,
    model: Model = None,
    set_: Set = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            min=0.1, callback=finite, metavar="GIB", help="Memory of the card.", show_default="this machine's"
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Say what memory each stage of a recipe takes and whether it fits, from the model's config alone."""
    named = {"model.name": Option("--model", model)} if model is not None else {}
    resolved = load_recipe(recipe, named, set_ or [], trust)
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.backbone.load import load_model_config

    model_config = load_model_config(resolved.model)
    fits = [show_fit(resolved, model_config, stage, gpu_memory) for stage in trained_by(resolved) or STAGES]
    if not all(fit.fits for fit in fits):
        wrong = ", ".join(fit.plan.stage for fit in fits if not fit.fits)
        raise UserError(f"{recipe} does not fit in {_readable(fits[0].capacity)}: {wrong}")


def show_fit(
    recipe: Recipe,
    model_config: PreTrainedConfig,
    stage: Stage,
    gpu_memory: float | None = None,
    reference: bool = True,
) -> Fit:
    """Print one stage's plan for a card of so many GiB, or for this machine."""
    from rich.console import Console

    from lorarlhf.memory import total_memory_bytes
    from lorarlhf.planner.fit import fit, this_target

    if gpu_memory is None:
        result = fit(recipe, model_config, stage, this_target(), total_memory_bytes(), reference)
    else:
        result = fit(recipe, model_config, stage, "cuda", int(gpu_memory * GIB), reference)
    console = Console()
    console.print(_table(result))
    for line in _verdict(result, recipe):
        typer.echo(line)
    typer.echo()
    return result


def _table(fit: Fit) -> Table:
    from rich.table import Table

    unit, name = (GIB, "GiB") if fit.plan.peak.total > 4 * GIB else (2**20, "MiB")
    digits = 2 if unit == GIB else 0
    table = Table(name, title=fit.plan.stage, title_justify="left", title_style="bold")
    for phase in fit.plan.phases:
        table.add_column(phase.name, justify="right")
    used = {kind for phase in fit.plan.phases for kind in phase.parts}
    for kind in [*KINDS, *sorted(used - set(KINDS))]:
        if kind in used:
            table.add_row(kind, *(f"{phase.parts.get(kind, 0) / unit:.{digits}f}" for phase in fit.plan.phases))
    table.add_section()
    table.add_row("in all", *(f"{phase.total / unit:.{digits}f}" for phase in fit.plan.phases), style="bold")
    return table


def _readable(size: int) -> str:
    """GiB in as many digits as tell small plans apart."""
    return f"{size / GIB:.{1 if size >= GIB else 2}f} GiB"


def _verdict(fit: Fit, recipe: Recipe) -> list[str]:
    plan, room = fit.plan, _readable(fit.capacity)
    lines = [f"{plan.stage}: {_readable(plan.peak.total)}, {'fits' if fit.fits else 'does not fit'} in {room}"]
    if plan.token_budget is not None:
        # A whole batch is the most that is planned; a larger budget that fits is no different from it.
        largest = max(fit.largest_budget or 0, plan.token_budget) if fit.fits else fit.largest_budget
        lines[0] += f" with micro-batches of {plan.token_budget} tokens (largest that fits: {largest})"
        wanted = max(recipe.ppo.batch_size, recipe.prompts_evaluated)
        if plan.rollout_rows and plan.rollout_rows < wanted:
            lines.append(f"  rollouts decode {plan.rollout_rows} of {wanted} responses at a time: more do not fit")
    if not fit.fits:
        for change in fit.changes:
            does = ", which fits" if change.peak <= fit.capacity else ""
            value = str(change.value).lower() if isinstance(change.value, bool) else change.value
            lines.append(f"  --set {change.key}={value}: {_readable(change.peak)}{does}")
        lines.append("  or a smaller model: --model")
    return lines

"""A whole recipe on one backbone: its stages one after the other, those that are done passed over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError, check_matplotlib
from lorarlhf.manifest import numbered_checkpoints
from lorarlhf.planner.fit import check_memory, plan_here
from lorarlhf.publishing.folder import MARKER
from lorarlhf.recipe.sections import Recipe, Stage, Step
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import BEST, RECIPE, Run, is_current, write_json
from lorarlhf.stages import ppo, reward, sft
from lorarlhf.stages.evaluate import evaluate_run, report_lines
from lorarlhf.stages.export import check_improved, export_run
from lorarlhf.stages.fidelity import fidelity_line
from lorarlhf.stages.inputs import check_inputs
from lorarlhf.stages.report import REPORT, write_report

GIB = 2**30
EXPORT = "export"  # folder in the run
EVALUATION = "evaluation.json"  # in the folder of what is evaluated
TRAIN: Mapping[Stage, Callable[..., dict[str, Any]]] = {
    "sft": sft.train_sft,
    "reward": reward.train_reward,
    "ppo": ppo.train_ppo,
}


def run_recipe(recipe: Recipe, run: Run | Path | str, resume: bool = True, console: Console | None = None) -> None:
    """Take the recipe's `stages` in turn; the base model is loaded once for those that train or evaluate.

    Inputs and memory of all of them are looked at before the model is. The model that leaves is that of the last stage
    that trains: `RUN/export` holds it.

    Args:
        run: a run, or its folder.
        resume: pass over stages that have finished, go on with the one that was interrupted. False moves them aside
            and takes all anew.

    Raises:
        UserError: what a stage raises; or what is to be passed over was made with other settings.
    """
    run, console = Run(run), console or Console()
    training: list[Stage] = [stage for stage in STAGES if stage in recipe.stages]
    last = training[-1] if training else run.last_stage()
    finished = _finished(recipe, run, training) if resume else []
    todo = training[len(finished) :]
    done: list[Step] = [*finished, *(_made_of(run, last) if not todo else [])]
    _look_ahead(recipe, run, todo, console)
    backbone = None
    for number, step in enumerate(recipe.stages, 1):
        passed_over = ", done already" if step in done else ""
        console.print(f"\n[bold]{number}/{len(recipe.stages)} {_title(step)}[/]{passed_over}", highlight=False)
        if step == "export":
            backbone = None  # merging loads the base for itself
        elif step not in (*done, "report"):
            backbone = backbone or load_backbone(recipe.model, recipe.data)
        if step not in done:
            _take(step, recipe, run, last, backbone, resume and step == next(iter(todo), None), console)
        for line in _result(step, recipe, run, last):
            console.print(f"   {line}", highlight=False, markup=False, soft_wrap=True)


def _title(step: Step) -> str:
    return STAGES[step].title if step in STAGES else step


def _finished(recipe: Recipe, run: Run, training: Sequence[Stage]) -> list[Stage]:
    """The stages from the first on that are done: one after one that is not was made from something else."""
    done: list[Stage] = []
    for stage in training:
        begun = run.has_adapter(stage) or any(numbered_checkpoints(run.stage(stage)))
        if begun and (other := _other_settings(recipe, run, stage)):
            raise UserError(
                f"{run.stage(stage)}: was made with other settings ({'; '.join(other)}); take those again, another "
                "--output-dir, or --anew to do everything again"
            )
        if not run.has_adapter(stage):
            break
        done.append(stage)
    return done


def _other_settings(recipe: Recipe, run: Run, stage: Stage) -> list[str]:
    """What the stage in the run was told otherwise than it would be now, of what it depends on."""
    if not (run.stage(stage) / RECIPE).is_file():
        return []
    before, now = run.read_recipe(stage=stage), recipe
    info = STAGES[stage]
    lines = []
    for section in ("model", "lora", "data", stage):
        was, wanted = (getattr(each, section).model_dump(mode="json") for each in (before, now))
        for key, value in wanted.items():
            other_data = section == "data" and key in OTHER_SOURCES - {*info.data_keys, f"{info.data_key}_test"}
            if was[key] != value and value != "auto" and not other_data:  # auto stands in a run as what it came to
                lines.append(f"{section}.{key} {json.dumps(was[key])}, not {json.dumps(value)}")
    if before.seed != now.seed:
        lines.append(f"seed {before.seed}, not {now.seed}")
    return lines


OTHER_SOURCES = {
    key for info in STAGES.values() for data_key in info.data_keys for key in (data_key, f"{data_key}_test")
}


def _look_ahead(recipe: Recipe, run: Run, todo: Sequence[Stage], console: Console) -> None:
    """Say what each stage takes, or raise UserError for one that cannot work, before the first begins."""
    has_sft = run.has_adapter("sft") or "sft" in todo
    if "report" in recipe.stages:
        check_matplotlib("report")
    for stage in todo:
        check_inputs(stage, recipe)
    if "ppo" in todo and "reward" not in todo:
        config = recipe.ppo
        ppo.find_reward_adapter(config.reward_model_weight, bool(config.reward_functions), run, None)
    for stage in todo:
        check_memory(stage, recipe, reference=has_sft)
        if plan := plan_here(stage, recipe, reference=has_sft):
            peak = f"{plan.peak.total / GIB:.1f} GiB at most, in {plan.peak.name}"
            console.print(f"{STAGES[stage].title}: {peak}", highlight=False)


def _made_of(run: Run, stage: Stage) -> list[Step]:
    """What follows the last stage and has been made of the weights that it holds now."""
    products: dict[Step, Path] = {"evaluate": run.stage(stage) / EVALUATION, "export": run.path / EXPORT / MARKER}
    return [step for step, path in products.items() if is_current(path, run.stage(stage))]


def _take(
    step: Step, recipe: Recipe, run: Run, last: Stage, backbone: SharedBackbone | None, resume: bool, console: Console
) -> None:
    if step == "evaluate":
        evaluation = evaluate_run(run, recipe, last, console, backbone=backbone)
        write_json(run.stage(last) / EVALUATION, evaluation)
    elif step == "report":
        write_report([run.path], run.path / REPORT)
    elif step == "export":
        check_improved(run, last, BEST, anyway=False)
        export_run(run, run.path / EXPORT, last)
    else:
        begun = resume and any(numbered_checkpoints(run.stage(step)))
        TRAIN[step](recipe, run, begun, backbone=backbone)


def _result(step: Step, recipe: Recipe, run: Run, last: Stage) -> list[str]:
    """What a step that is done has come to, line by line."""
    if step == "evaluate":
        evaluation = json.loads((run.stage(last) / EVALUATION).read_text(encoding="utf-8"))
        return [f"{name:18} {text}" if name else text for name, text in report_lines(evaluation)]
    if step == "report":
        return [f"in {run.path / REPORT}"]
    if step == "export":
        compared = run.read_summary(last).get("export")
        return [f"in {run.path / EXPORT}", *([fidelity_line(compared)] if compared else [])]
    summary = run.read_summary(step)
    if step == "ppo":
        return ppo.result_lines(summary, recipe.ppo)
    return [sft.result_line(summary) if step == "sft" else reward.result_line(summary)]

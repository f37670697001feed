"""A whole recipe on one backbone: its stages one after the other; those that have trained are passed over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import get_console
from rich.console import Console

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import holds_out
from lorarlhf.data.sources import ROW_CACHE
from lorarlhf.errors import UserError, check_matplotlib
from lorarlhf.json_file import read_object, telling_of
from lorarlhf.lock import one_writer
from lorarlhf.memory import free_unused_memory
from lorarlhf.planner.fit import check_memory, plan_here
from lorarlhf.publishing.ollama import ollama_lines
from lorarlhf.recipe.sections import Recipe, Stage, Step
from lorarlhf.recipe.stages import STAGES, trained_by
from lorarlhf.rl.rewards import all_reward_functions
from lorarlhf.run import BEST, SUMMARY, Run, write_json
from lorarlhf.stages import ppo, reward, sft
from lorarlhf.stages.agenda import Agenda
from lorarlhf.stages.beginning import check_not_interrupted
from lorarlhf.stages.evaluate import evaluate_run, report_lines
from lorarlhf.stages.export import check_improved, export_run
from lorarlhf.stages.fidelity import fidelity_line
from lorarlhf.stages.forecast import time_left
from lorarlhf.stages.inputs import check_inputs
from lorarlhf.stages.report import REPORT, write_report
from lorarlhf.stages.roles import find_reward_adapter
from lorarlhf.stages.states import BEGUN, DONE, NEW, State, states_of

GIB = 2**30
EXPORT = "export"  # folder in the run
EVALUATION = "evaluation.json"  # in the folder of what is evaluated
TRAIN: Mapping[Step, Callable[..., dict[str, Any]]] = {
    "sft": sft.train_sft,
    "reward": reward.train_reward,
    "ppo": ppo.train_ppo,
}


def run_recipe(
    recipe: Recipe,
    run: Run | Path | str,
    resume: bool = True,
    evaluate: Callable[[Run, Recipe, Stage, SharedBackbone], dict[str, Any]] | None = None,
) -> None:
    """Take the recipe's `stages` in turn; the base model is loaded once for those that train or evaluate.

    Inputs and memory of all of them are looked at before the model is. The model that leaves is that of the last stage
    that trains: `RUN/export` holds it.

    Args:
        run: a run, or its folder.
        resume: pass over training that has finished, go on with what was interrupted. False moves them aside and
            trains all anew. Evaluation, report and export are made again each time.
        evaluate: what makes `evaluation.json` of what the last stage has left; None takes `evaluate_run`.

    Raises:
        UserError: what a stage raises; or what is to be passed over was made with other settings.
    """
    run = Run(run)
    with one_writer(run.path), ROW_CACHE:
        _run_recipe(recipe, run, resume, evaluate or _evaluate)


def _run_recipe(
    recipe: Recipe,
    run: Run,
    resume: bool,
    evaluate: Callable[[Run, Recipe, Stage, SharedBackbone], dict[str, Any]],
) -> None:
    console = get_console()
    training = trained_by(recipe)
    last = training[-1] if training else run.last_stage()
    states: dict[Step, State] = dict.fromkeys(training, NEW)
    if resume:
        states |= states_of(recipe, run, training)
    _look_ahead(recipe, run, [stage for stage in training if states[stage] != DONE], last, console)
    backbone, to_come, began = None, list(recipe.stages), time.time()

    def left() -> str:
        return time_left(recipe, run, [step for step in to_come if states.get(step) != DONE], began)

    with Agenda([_title(step) for step in recipe.stages], console, left) as agenda:
        for number, step in enumerate(recipe.stages, 1):
            to_come, began = list(recipe.stages[number - 1 :]), time.time()
            note = f", {said}" if step == "evaluate" and (said := left()) else ""
            agenda.begin(number, ", done already" if states.get(step) == DONE else note)
            if step == "export":
                backbone = None  # merging loads the base for itself
            elif step == "evaluate" or states.get(step, DONE) != DONE:
                backbone = backbone or load_backbone(recipe.model, recipe.data)
            if step == "evaluate" and backbone is not None:
                figures = evaluate(run, recipe, last, backbone)
                write_json(run.stage(last) / EVALUATION, figures)
            elif step not in states:
                _make(step, recipe, run, last)
            elif states[step] != DONE:
                TRAIN[step](recipe, run, states[step] == BEGUN, backbone=backbone)
            free_unused_memory()
            agenda.end(number, _result(step, recipe, run, last), kept=-1 if step == "evaluate" else 0)


def _title(step: Step) -> str:
    return STAGES[step].title if step in STAGES else step


def _look_ahead(recipe: Recipe, run: Run, todo: Sequence[Stage], last: Stage, console: Console) -> None:
    """Say what each stage takes, or raise UserError for one that cannot work, before the first begins."""
    has_sft = run.has_adapter("sft") or "sft" in todo
    if "report" in recipe.stages:
        check_matplotlib("report")
    for stage in todo:
        check_inputs(stage, recipe, run.path)
    config = recipe.ppo
    functions = all_reward_functions(recipe) if {last, *todo} & {"ppo"} else []
    if "ppo" in todo and "sft" not in todo:
        check_not_interrupted(run, "sft")
    if "ppo" in todo and ("reward" not in todo or not config.reward_model_weight):
        find_reward_adapter(config.reward_model_weight, bool(functions), run, None)
    for stage in STAGES:
        evaluated = stage == last and "evaluate" in recipe.stages
        looks_at_held_out = stage == "ppo" and stage in todo and config.eval_every
        key = STAGES[stage].data_key
        if (evaluated or looks_at_held_out) and not holds_out(recipe.data, STAGES[stage].data_keys):
            raise UserError(f"data.test_size: 0 leaves nothing to test {stage} on; raise it, or set data.{key}_test")
    for stage in todo:
        check_memory(stage, recipe, reference=has_sft)
        if plan := plan_here(stage, recipe, reference=has_sft):
            peak = f"{plan.peak.total / GIB:.1f} GiB at most, in {plan.peak.name}"
            console.print(f"{STAGES[stage].title}: {peak}", highlight=False)


def _evaluate(run: Run, recipe: Recipe, stage: Stage, backbone: SharedBackbone) -> dict[str, Any]:
    return evaluate_run(run, recipe, stage, get_console(), backbone=backbone)


def _make(step: Step, recipe: Recipe, run: Run, last: Stage) -> None:
    """What is made of the weights that training has left, and made again each time: it takes minutes."""
    if step == "report":
        write_report([run.path], run.path / REPORT)
    else:
        check_improved(run, last, BEST, anyway=False)
        config = recipe.export
        export_run(run, run.path / EXPORT, last, config.merge, config.dtype, base=config.base)


def read_evaluation(run: Run, stage: Stage) -> dict[str, Any]:
    """What the step `evaluate` has left of a stage."""
    return read_object(run.stage(stage) / EVALUATION)


def _result(step: Step, recipe: Recipe, run: Run, last: Stage) -> list[str]:
    """What a step that is done has come to, line by line."""
    if step == "evaluate":
        return [f"{name:18} {text}" if name else text for name, text in report_lines(read_evaluation(run, last))]
    if step == "report":
        return [f"in {run.path / REPORT}"]
    if step == "export":
        compared = run.read_summary(last).get("export")
        lines = [f"in {run.path / EXPORT}", *([fidelity_line(compared)] if compared else [])]
        return [*lines, *ollama_lines(run.path / EXPORT, run.path.resolve().name)]
    summary = run.read_summary(step)
    with telling_of(run.stage(step) / SUMMARY):  # of a stage that was done already it may be anybody's
        if step == "ppo":
            return ppo.result_lines(summary, recipe.ppo)
        return [sft.result_line(summary) if step == "sft" else reward.result_line(summary)]

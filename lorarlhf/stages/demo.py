"""The demo: a whole recipe on the shop assistant's world, judged by the rule its labels were drawn from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import get_console

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.rows import request_text
from lorarlhf.demo.world import gold_score, is_fluent
from lorarlhf.errors import UserError, check_matplotlib
from lorarlhf.evaluation.policy import win_rate
from lorarlhf.evaluation.report import show_samples
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.run import Run, of_adapter, write_json
from lorarlhf.stages.evaluate import evaluate_policy, held_out_prompts, load_reference_and_reward
from lorarlhf.stages.pipeline import EXPORT, read_evaluation, run_recipe
from lorarlhf.stages.report import REPORT

STAGE: Stage = "ppo"  # what the demo is about


def run_demo(output_dir: Path, seed: int, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Run the recipe `demo` with the gold score beside its evaluation; write and return `summary.json`."""
    start, run, console = time.perf_counter(), Run(output_dir), get_console()
    recipe = load_recipe("demo", sets=[f"seed={seed}", *sets])
    if recipe.data.preferences_test is None and not recipe.data.test_size:
        raise UserError("data.test_size: the demo is judged by what is held out; leave data.preferences_test as it is")
    no_report = _why_no_report()
    if no_report:
        recipe = recipe.model_copy(update={"stages": [step for step in recipe.stages if step != "report"]})
    console.print("[bold]A shop assistant learns manners[/]: the base model answers customers politely or not. Of the")
    console.print("comparisons that teach the difference 10% are mislabelled; a perfect judge would reach 90%.")
    run_recipe(recipe, run, resume=False, evaluate=evaluate_by_gold)
    summary = {"seconds": time.perf_counter() - start, **_summary(run)}
    write_json(output_dir / "summary.json", summary)
    report = f"no page on it: {no_report}" if no_report else f"all of it on one page: {output_dir / REPORT}"
    for line in (
        f"\nDone in {summary['seconds']:.0f} s; figures in {output_dir / 'summary.json'}; {report}",
        f"{output_dir / EXPORT} loads with AutoModelForCausalLM.from_pretrained; to talk to what has come out:",
        f"    lorarlhf chat --run {output_dir}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return summary


def _why_no_report() -> str | None:
    """What the report lacks here; the demo can do without."""
    try:
        check_matplotlib("report")
    except UserError as error:
        return str(error)
    return None


def evaluate_by_gold(run: Run, recipe: Recipe, stage: Stage, backbone: SharedBackbone) -> dict[str, Any]:
    """What `evaluate_run` gives of a policy, and what the rule behind the labels says of it: questions never seen."""
    console = get_console()
    prompts = held_out_prompts(recipe.data, stage, [])
    backbone.load_role("policy", run.adapter(stage))
    reference = load_reference_and_reward(backbone, run, stage)
    measured = evaluate_policy(backbone, recipe, prompts, [], console)
    questions = [request_text(prompt) for prompt in measured.prompts]
    before, after = (
        [gold_score(question, text) for question, text in zip(questions, texts, strict=True)]
        for texts in (measured.before, measured.after)
    )
    gold = {
        "before": sum(before) / len(before),
        "after": sum(after) / len(after),
        "win_rate": win_rate(after, before),
    }
    fluent = sum(map(is_fluent, measured.after)) / len(measured.after)
    show_samples(console, questions, measured.before, measured.after, asker="Customer")
    wins = f"{gold['before']:.2f} -> {gold['after']:.2f}, tuned wins {gold['win_rate']:.0%}"
    console.print(f"   {'gold score':18} {wins}, by the rule that the labels were drawn from", highlight=False)
    console.print(f"   {'fluent':18} {fluent:.1%}", highlight=False)
    own = {"gold": gold, "fluent_fraction": fluent}
    return {"stage": stage, "reference": reference, **of_adapter(run.adapter(stage)), **measured.figures, **own}


def _summary(run: Run) -> dict[str, Any]:
    evaluation = read_evaluation(run, STAGE)
    return {
        "reward": {"eval_accuracy": run.read_summary("reward")["eval_accuracy"]},
        "ppo": {
            "iterations": run.read_summary("ppo")["iterations"],
            "kl": evaluation["after"]["kl"],
            "reward_before": evaluation["before"]["reward"],
            "reward_after": evaluation["after"]["reward"],
        },
        "gold": evaluation["gold"],
        "fluent_fraction": evaluation["fluent_fraction"],
    }

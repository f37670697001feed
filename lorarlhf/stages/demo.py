"""The demo: the whole loop on the shop assistant's world, judged by the rule its labels were drawn from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.rows import request_text
from lorarlhf.data.tokenized import prompt_examples
from lorarlhf.demo.world import gold_score, is_fluent
from lorarlhf.errors import UserError
from lorarlhf.evaluation.policy import Answers, answer, win_rate
from lorarlhf.evaluation.report import show_samples
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe
from lorarlhf.rl.score import ScoringPasses, response_scorer
from lorarlhf.run import Run, write_json
from lorarlhf.stages.export import export_run
from lorarlhf.stages.fidelity import fidelity_line
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.report import REPORT, write_report
from lorarlhf.stages.reward import train_reward


def run_demo(output_dir: Path, seed: int, sets: Sequence[str] = (), console: Console | None = None) -> dict[str, Any]:
    """Reward model, PPO, evaluation and export on one backbone; write and return `summary.json`."""
    start = time.perf_counter()
    console = console or Console()
    recipe = load_recipe("demo", sets=[f"seed={seed}", *sets])
    if recipe.data.preferences_test is None and not recipe.data.test_size:
        raise UserError("data.test_size: the demo is judged by what is held out; leave data.preferences_test as it is")
    run = Run(output_dir)
    console.print("[bold]A shop assistant learns manners[/]: the base model answers customers politely or not.")
    backbone = load_backbone(recipe.model)
    console.print("\n[bold]1. Reward model[/] from comparisons, 10% of them mislabelled")
    reward = train_reward(recipe, run, backbone=backbone)
    console.print(f"   held-out accuracy {reward['eval_accuracy']:.1%} (a perfect judge would reach 90%)")
    console.print("\n[bold]2. PPO[/] against it")
    ppo = train_ppo(recipe, run, backbone=backbone)
    if ppo["improved"] is False:
        console.print("   the policy kept is the one from before training, as none was better on the held-out prompts")
    console.print("\n[bold]3. Evaluation[/] on questions never seen, by the rule the labels were drawn from")
    questions, before, after = _answers(backbone, recipe)
    summary = _summary(questions, before, after, reward, ppo)
    _show(console, questions, before, after, summary)
    console.print("\n[bold]4. Export[/] of the tuned policy, merged")
    compared = export_run(run, output_dir / "export", "ppo")
    console.print(f"   {fidelity_line(compared)}", highlight=False, soft_wrap=True)
    summary = {"seconds": time.perf_counter() - start, **summary}
    write_json(output_dir / "summary.json", summary)
    console.print(f"   {output_dir / 'export'} loads with AutoModelForCausalLM.from_pretrained")
    console.print(f"\nDone in {summary['seconds']:.0f} s; figures in {output_dir / 'summary.json'}")
    _report(run, console)
    return summary


def _report(run: Run, console: Console) -> None:
    """All of it on a page, where what draws figures is installed."""
    try:
        write_report([run.path], run.path / REPORT)
        line = f"All of it on one page: {run.path / REPORT}"
    except UserError as error:
        line = f"No page on it: {error}, then: lorarlhf report --run {run.path}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _answers(backbone: SharedBackbone, recipe: Recipe) -> tuple[list[str], Answers, Answers]:
    prompts = prompt_examples(recipe.data, backbone.tokenizer, "test")
    passes = ScoringPasses(backbone, recipe.ppo.temperature, recipe.ppo.token_budget)
    score = response_scorer(passes, recipe.ppo.reward_model_weight, [])
    before, after = (
        answer(backbone, role, prompts, recipe.ppo, recipe.seed, score) for role in ("reference", "policy")
    )
    return [request_text(example.prompt) for example in prompts], before, after


def _summary(
    questions: list[str], before: Answers, after: Answers, reward: dict[str, Any], ppo: dict[str, Any]
) -> dict[str, Any]:
    gold_before, gold_after = (
        [gold_score(question, text) for question, text in zip(questions, answers.texts, strict=True)]
        for answers in (before, after)
    )
    return {
        "reward": {"eval_accuracy": reward["eval_accuracy"]},
        "ppo": {
            "iterations": ppo["iterations"],
            "kl": after.kl,
            "reward_before": before.reward,
            "reward_after": after.reward,
        },
        "gold": {
            "before": sum(gold_before) / len(gold_before),
            "after": sum(gold_after) / len(gold_after),
            "win_rate": win_rate(gold_after, gold_before),
        },
        "fluent_fraction": sum(map(is_fluent, after.texts)) / len(after.texts),
    }


def _show(console: Console, questions: list[str], before: Answers, after: Answers, summary: dict[str, Any]) -> None:
    show_samples(console, questions, before.texts, after.texts, asker="Customer")
    gold, ppo = summary["gold"], summary["ppo"]
    console.print(f"   gold score   {gold['before']:.2f} -> {gold['after']:.2f}, tuned wins {gold['win_rate']:.0%}")
    console.print(f"   reward       {ppo['reward_before']:.2f} -> {ppo['reward_after']:.2f}")
    console.print(f"   fluent       {summary['fluent_fraction']:.1%}, KL {ppo['kl']:.1f} nats a response")

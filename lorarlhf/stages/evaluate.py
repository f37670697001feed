"""Evaluate a stage of a run on held-out data."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.rows import request_text
from lorarlhf.data.tokenized import prompt_examples, reward_examples
from lorarlhf.errors import UserError
from lorarlhf.evaluation.policy import answer, policy_metrics
from lorarlhf.evaluation.report import SHOWN, counting
from lorarlhf.evaluation.reward_model import TOKEN_BUDGET, reward_metrics
from lorarlhf.recipe.sections import DataConfig, Recipe, Stage
from lorarlhf.rl.rewards import load_reward_functions
from lorarlhf.rl.score import RolloutScorer, ScoringPasses, response_scorer
from lorarlhf.run import Run


def evaluate_run(run: Run, recipe: Recipe, stage: Stage, console: Console) -> dict[str, Any]:
    """What `evaluation.json` holds: of a reward model how well it predicts, of a policy what has changed.

    Args:
        recipe: the run's, with whatever is to be different here.

    Raises:
        UserError: the stage has left no adapter, or there is nothing held out.
    """
    adapter = run.adapter(stage)
    backbone = load_backbone(recipe.model, recipe.data.chat_template)
    if stage == "reward":
        backbone.load_role("reward", adapter)
        return evaluate_reward(backbone, recipe, console)
    backbone.load_role("policy", adapter)
    reference = reference_of(run, stage)
    if reference == "sft":
        backbone.load_role("reference", run.stage("sft"))
    if run.has_adapter("reward"):
        backbone.load_role("reward", run.stage("reward"))
    return {"stage": stage, "reference": reference, **evaluate_policy(backbone, recipe, stage, console)}


def reference_of(run: Run, stage: Stage) -> str:
    """Where the policy of a stage started from: `sft`, or the bare `base`."""
    if stage == "sft":
        return "base"
    started_from = "sft" if run.has_adapter("sft") else "base"
    return run.read_summary(stage).get("reference", started_from)


def evaluate_reward(backbone: SharedBackbone, recipe: Recipe, console: Console) -> dict[str, Any]:
    """The reward role on the held-out comparisons (or ratings) of `recipe`."""
    test = reward_examples(recipe, backbone.tokenizer, "test")
    if not len(test.dataset):
        raise _nothing_held_out()
    pairs = recipe.reward.objective == "bradley_terry"
    with counting(console, "scored", len(test.dataset) * (2 if pairs else 1)) as advance:
        metrics = reward_metrics(backbone, test.dataset, advance)
    return {
        "stage": "reward",
        "objective": recipe.reward.objective,
        "data": recipe.data.preferences_test or recipe.data.preferences,
        "examples": len(test.dataset),
        "dropped_too_long": test.dropped,
        **metrics,
    }


def evaluate_policy(backbone: SharedBackbone, recipe: Recipe, stage: Stage, console: Console) -> dict[str, Any]:
    """The policy role beside the reference on held-out prompts, each answered once by both."""
    data = _prompts_of(recipe.data, stage)
    prompts = prompt_examples(data, backbone.tokenizer, "test")
    if not prompts:
        raise _nothing_held_out()
    score = _scorer(backbone, recipe)
    with counting(console, "answered", 2 * len(prompts)) as advance:
        before, after = (
            answer(backbone, role, prompts, recipe.ppo, recipe.seed, score, advance) for role in ("reference", "policy")
        )
    samples = []
    for i in range(min(SHOWN, len(prompts))):
        sample: dict[str, Any] = {
            "prompt": request_text(prompts[i].prompt),
            "before": before.texts[i],
            "after": after.texts[i],
        }
        if before.scores is not None and after.scores is not None:
            sample |= {"reward_before": before.scores[i].item(), "reward_after": after.scores[i].item()}
        samples.append(sample)
    return {
        "data": data.prompts_test or data.prompts or data.preferences_test or data.preferences,
        "prompts": len(prompts),
        "temperature": recipe.ppo.temperature,
        "response_length": recipe.ppo.response_length,
        "seed": recipe.seed,
        **policy_metrics(before, after),
        "samples": samples,
    }


def _scorer(backbone: SharedBackbone, recipe: Recipe) -> RolloutScorer | None:
    """The reward of PPO, as far as the run has one; None if it has none."""
    functions = load_reward_functions(recipe.ppo.reward_functions)
    if "reward" not in backbone.roles and not functions:
        return None
    passes = ScoringPasses(backbone, recipe.ppo.temperature, TOKEN_BUDGET)
    return response_scorer(passes, recipe.ppo.reward_model_weight, functions)


def _prompts_of(data: DataConfig, stage: Stage) -> DataConfig:
    """Fine-tuning has its own prompts, those of the demonstrations."""
    if stage == "ppo" or not (data.sft or data.sft_test):
        return data
    return data.model_copy(update={"prompts": data.sft, "prompts_test": data.sft_test})


def _nothing_held_out() -> UserError:
    return UserError("nothing is held out, as data.test_size is 0; give data to evaluate on with --dataset")

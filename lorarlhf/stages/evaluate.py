"""Evaluate a stage of a run on held-out data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorarlhf.backbone.budget import tokens_a_pass
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.choices import Choices, choice_examples
from lorarlhf.data.examples import Loaded, load_prompt_rows, stream_choices
from lorarlhf.data.rows import Prompt, PromptRow, request_text
from lorarlhf.data.tokenized import read_by_model
from lorarlhf.errors import UserError
from lorarlhf.evaluation.judge import Judge, judged
from lorarlhf.evaluation.policy import Responses, answer, measure, policy_metrics, respond
from lorarlhf.evaluation.report import SAMPLES_SHOWN, counting, policy_lines
from lorarlhf.evaluation.reward_model import score_tokens
from lorarlhf.generation.sample import response_texts
from lorarlhf.memory import free_unused_memory
from lorarlhf.recipe.sections import DataConfig, ObjectiveName, Recipe, Stage, sources_of, title_of
from lorarlhf.recipe.stages import STAGES
from lorarlhf.recipe.yaml import show
from lorarlhf.rl.rewards import RewardFunction, WeightedReward, all_reward_functions, columns_wanted
from lorarlhf.rl.score import RolloutScorer, ScoringPasses, response_scorer
from lorarlhf.run import BEST, SUMMARY, Run, of_adapter, other_test_data
from lorarlhf.stages.annotators import annotator_figures, annotator_lines
from lorarlhf.training.objectives import OBJECTIVES, Objective
from lorarlhf.training.reward_bench_2 import reward_bench_2, reward_bench_2_lines, scored

logger = logging.getLogger(__name__)
BASE_MODEL: Literal["base"] = "base"  # where a policy starts that starts from no stage


@dataclass(frozen=True)
class Measured:
    """A policy beside its reference.

    Attributes:
        figures: what `evaluation.json` holds of it.
        prompts: N of them, as the model read them.
        before, after: what reference and policy respond to each.
    """

    figures: dict[str, Any]
    prompts: list[Prompt]
    before: list[str]
    after: list[str]


def evaluate(
    run: Run | Path | str,
    stage: Stage | None = None,
    dataset: str | None = None,
    sets: Sequence[str] = (),
    reward_functions: Sequence[RewardFunction] = (),
    console: Console | None = None,
    checkpoint: str | int = BEST,
    allow_other_base: bool = False,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """How well a reward model predicts held-out comparisons, or what a policy has come to answer.

    Args:
        run: a run, or its folder.
        stage: None takes the last one that has finished.
        dataset: a source to test on, all of it or its test split; None takes what the run holds out.
        sets: keys of the run's recipe that are to be different here, as `ppo.temperature=0.3`.
        reward_functions: part of the reward, each with weight 1, as `train_ppo` was given them.
        console: where progress is shown; None shows nothing.
        checkpoint: another adapter than the one that was kept, see `Run.adapter`.
        allow_other_base: take adapters that say they were trained on another base model.
        judge: what a policy was not trained against, and is to be compared by too (`open_judge`, or one of your own).

    Returns:
        What `lorarlhf evaluate` writes to `evaluation.json`; nothing is written here.

    Raises:
        UserError: there is no such run or stage, or nothing is held out.
    """
    run = Run(run)
    stage = stage or run.last_stage()
    named = {} if dataset is None else other_test_data(stage, "dataset", dataset)
    recipe = run.read_recipe(named, sets, stage)
    console = console or Console(quiet=True)
    return evaluate_run(run, recipe, stage, console, reward_functions, checkpoint, allow_other_base, judge)


def evaluate_run(
    run: Run,
    recipe: Recipe,
    stage: Stage,
    console: Console,
    reward_functions: Sequence[RewardFunction] = (),
    checkpoint: str | int = BEST,
    allow_other_base: bool = False,
    judge: Judge | None = None,
    backbone: SharedBackbone | None = None,
) -> dict[str, Any]:
    """What `evaluation.json` holds: of a reward model how well it predicts, of a policy what has changed.

    Args:
        recipe: the run's, with whatever is to be different here.
        backbone: one that is loaded already; it gains the roles that are compared. None loads the recipe's model.

    Raises:
        UserError: the stage has left no adapter, there is nothing held out, or a judge is given for a reward model.
    """
    adapter, info = run.adapter(stage, checkpoint), STAGES[stage]
    check_judged(stage, judge)
    functions = all_reward_functions(recipe, reward_functions)
    prompts = None if info.scores else held_out_prompts(recipe.data, stage, functions)
    if prompts is None:
        stream_choices(recipe.data, "test").is_of_its_kind()  # data that cannot be read are told of here
    backbone = backbone or load_backbone(recipe.model, recipe.data)
    backbone.load_role(info.role, adapter, allow_other_base=allow_other_base)
    if prompts is None:
        figures = evaluate_reward(backbone, recipe.data, recipe.reward.objective, console)
        return {**figures, **of_adapter(adapter)}
    reference = load_reference_and_reward(backbone, run, stage, allow_other_base)
    measured = evaluate_policy(backbone, recipe, prompts, functions, console)
    opponents: dict[str, list[str]] = {reference: measured.before}
    if judge:
        opponents |= opponents_beside(reference, backbone, run, recipe, stage, prompts, allow_other_base)
    del backbone  # the judge may be a model of its own
    judgement = judged_by(judge, measured, opponents)
    return {"stage": stage, "reference": reference, **of_adapter(adapter), **measured.figures, **judgement}


def check_judged(stage: Stage, judge: Judge | None) -> None:
    """Raise UserError if there is a judge, and what the stage leaves writes nothing to be judged."""
    if judge and STAGES[stage].scores:
        raise UserError("--judge: compares what policies respond, and --stage reward is none; test it with --dataset")


def opponents_beside(
    reference: Stage | Literal["base"],
    backbone: SharedBackbone,
    run: Run,
    recipe: Recipe,
    stage: Stage,
    loaded: Loaded[PromptRow],
    allow_other_base: bool = False,
) -> dict[str, list[str]]:
    """What the stage that policies start from responds, where the run has it and it is not the reference."""
    start = STAGES[stage].starts_from
    if start in (None, reference) or not run.has_adapter(start):
        return {}
    prompts = read_by_model(loaded, recipe.data, backbone.tokenizer, "test")
    backbone.load_role("candidate", run.stage(start), allow_other_base=allow_other_base)
    batches = respond(backbone, "candidate", prompts, recipe.ppo, recipe.seed)
    return {start: [text for batch in batches for text in response_texts(backbone, batch.rollout)]}


def judged_by(judge: Judge | None, measured: Measured, opponents: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The part of `evaluation.json` that a judge has; nothing without one."""
    if judge is None:
        return {}
    free_unused_memory()
    return {"judge": judged(judge, measured.prompts, measured.after, opponents)}


def load_reference_and_reward(
    backbone: SharedBackbone, run: Run, stage: Stage, allow_other_base: bool = False
) -> Stage | Literal["base"]:
    """Give a backbone what the policy of a stage is measured by: its reference, which is returned, and the reward."""
    reference = reference_of(run, stage)
    if reference != BASE_MODEL:
        backbone.load_role("reference", run.stage(reference), allow_other_base=allow_other_base)
    if run.has_adapter("reward"):
        backbone.load_role("reward", run.stage("reward"), allow_other_base=allow_other_base)
    return reference


def reference_of(run: Run, stage: Stage) -> Stage | Literal["base"]:
    """Where the policy of a stage started from: another stage, or the bare `base`.

    Raises:
        UserError: the summary names something else, which would be looked for as a folder.
    """
    starts_from = STAGES[stage].starts_from
    if starts_from is None:
        return BASE_MODEL
    started_from = starts_from if run.has_adapter(starts_from) else BASE_MODEL
    reference = run.read_summary(stage).get("reference", started_from)
    if reference == starts_from:
        return starts_from
    if reference == BASE_MODEL:
        return BASE_MODEL
    raise UserError(
        f"{run.stage(stage) / SUMMARY}: reference is {show(reference)}, and a policy starts from {starts_from} or "
        f"{BASE_MODEL}; fetch or make it again"
    )


def evaluate_reward(
    backbone: SharedBackbone, data: DataConfig, objective: ObjectiveName, console: Console
) -> dict[str, Any]:
    """The reward role on the held-out comparisons (or ratings)."""

    def score(rows: Sequence[Sequence[int]]) -> Tensor:
        with counting(console, "scored", len(rows)) as advance:
            return score_tokens(backbone, rows, advance)

    return reward_figures(objective, data, backbone.tokenizer, score)


def reward_figures(
    name: ObjectiveName,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    score: Callable[[Sequence[Sequence[int]]], Tensor],
) -> dict[str, Any]:
    """What `evaluation.json` holds of any scorer of token sequences, on the held-out rows.

    Raises:
        UserError: nothing is held out.
    """
    if choices := choice_examples(data, tokenizer, "test"):
        return {"stage": "reward", **_choice_figures(choices, score)}
    objective = OBJECTIVES[name]
    held_out = objective.held_out_rows(data, tokenizer)
    test = held_out.examples
    if not len(test.dataset):
        raise nothing_held_out()
    scores = objective.scores(test.dataset, score)
    return {
        "stage": "reward",
        "objective": name,
        "data": title_of(sources_of(data.preferences_test or data.preferences)),
        "examples": len(test.dataset),
        "rows": test.rows,
        "dropped_too_long": test.dropped,
        **objective.held_out(test.dataset, scores),
        **_baselines(objective, data, tokenizer, test.dataset),
        **objective.breakdown(test.dataset, scores, held_out.groups),
        **annotator_figures(held_out, scores, score),
    }


def _choice_figures(choices: Choices, score: Callable[[Sequence[Sequence[int]]], Tensor]) -> dict[str, Any]:
    if not choices.examples:
        raise nothing_held_out()
    sequences = [ids for example in choices.examples for ids in example.right + example.wrong]
    scores = score(sequences).tolist()
    return {
        "data": choices.source,
        "examples": len(choices.examples),
        "rows": choices.rows,
        "dropped_too_long": choices.dropped,
        "reward_bench_2": reward_bench_2(scored(choices.examples, scores)),
        "longer_wins": reward_bench_2(scored(choices.examples, list(map(len, sequences))))["mean"],
    }


def _baselines(
    objective: Objective, data: DataConfig, tokenizer: PreTrainedTokenizerBase, test: Dataset
) -> dict[str, Any]:
    """Learnt from the rows that the run trained on, if they are still there."""
    try:
        return objective.baselines(lambda: objective.examples(data, tokenizer, "train").dataset, test)
    except UserError as error:
        logger.warning("a bag of words is not measured, as what the run trained on cannot be read: %s", error)
        return {}


def evaluate_policy(
    backbone: SharedBackbone,
    recipe: Recipe,
    loaded: Loaded[PromptRow],
    functions: Sequence[WeightedReward],
    console: Console,
    responses: Sequence[Responses] | None = None,
) -> Measured:
    """The policy role beside the reference on prompts, each answered once by both.

    Args:
        responses: another model's, in place of those of the policy role.
    """
    prompts = read_by_model(loaded, recipe.data, backbone.tokenizer, "test")
    config, score = recipe.ppo, reward_scorer(backbone, recipe, functions)
    with counting(console, "answered", 2 * len(prompts)) as advance:
        before = answer(backbone, "reference", prompts, config, recipe.seed, score, advance)
        if responses is None:
            after = answer(backbone, "policy", prompts, config, recipe.seed, score, advance)
        else:
            after = measure(backbone, responses, prompts, config, score, advance)
    samples = []
    for i in range(min(SAMPLES_SHOWN, len(prompts))):
        sample: dict[str, Any] = {
            "prompt": request_text(prompts[i].prompt),
            "before": before.texts[i],
            "after": after.texts[i],
        }
        if before.scores is not None and after.scores is not None:
            sample |= {"reward_before": before.scores[i].item(), "reward_after": after.scores[i].item()}
        samples.append(sample)
    figures = {
        "data": loaded.source,
        "prompts": len(prompts),
        "rows": len(loaded.rows),
        "temperature": recipe.ppo.temperature,
        "response_length": recipe.ppo.response_length,
        "seed": recipe.seed,
        **policy_metrics(before, after),
        "samples": samples,
    }
    return Measured(figures, [example.prompt for example in prompts], before.texts, after.texts)


def reward_scorer(
    backbone: SharedBackbone, recipe: Recipe, functions: Sequence[WeightedReward]
) -> RolloutScorer | None:
    """The reward of PPO, as far as the run has one; None if it has none."""
    if "reward" not in backbone.roles and not functions:
        return None
    passes = ScoringPasses(backbone, recipe.ppo.temperature, tokens_a_pass(backbone.device))
    return response_scorer(passes, recipe.ppo.reward_model_weight, functions)


def prompts_of(data: DataConfig, stage: Stage) -> DataConfig:
    """With the prompts of what the stage trained on: fine-tuning has those of the demonstrations."""
    key = STAGES[stage].data_key
    train, test = getattr(data, key), getattr(data, f"{key}_test")
    return data.model_copy(update={"prompts": train, "prompts_test": test}) if train or test else data


def held_out_prompts(data: DataConfig, stage: Stage, functions: Sequence[WeightedReward]) -> Loaded[PromptRow]:
    """Prompts to test the stage on, with the columns that the functions ask for. Raises UserError if there are none."""
    loaded = load_prompt_rows(prompts_of(data, stage), "test", columns_wanted(functions))
    if not loaded.rows:
        raise nothing_held_out()
    return loaded


def nothing_held_out() -> UserError:
    """What is raised where there is nothing to evaluate on."""
    return UserError("nothing is held out, as data.test_size is 0; give data to evaluate on with --dataset")


def report_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An evaluation line by line, each with its heading."""
    if "reward_bench_2" in evaluation:
        return reward_bench_2_lines(evaluation)
    if "objective" in evaluation:
        return [*OBJECTIVES[evaluation["objective"]].report(evaluation), *annotator_lines(evaluation)]
    return policy_lines(evaluation)

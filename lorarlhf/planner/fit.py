"""Whether a stage fits, and what to change if it does not."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from lorarlhf.backbone.budget import tokens_a_pass
from lorarlhf.backbone.load import load_model_config
from lorarlhf.errors import UserError
from lorarlhf.memory import available_memory_bytes
from lorarlhf.planner.plan import CannotPlanError, Planner, StagePlan, Target
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.recipe.stages import STAGES

logger = logging.getLogger(__name__)
GIB = 2**30


@dataclass(frozen=True)
class Change:
    """Another value of a recipe's key, and the stage's peak with it."""

    key: str
    value: object
    peak: int


@dataclass(frozen=True)
class Fit:
    """A stage's plan beside the memory there is.

    Attributes:
        largest_budget: the most `ppo.micro_batch_tokens` that fit, 0 if none do; None for the other stages.
        changes: where it does not fit, what helps, the most helpful first.
    """

    plan: StagePlan
    capacity: int
    largest_budget: int | None
    changes: list[Change]

    @property
    def fits(self) -> bool:
        return self.plan.peak.total <= self.capacity


def this_target() -> Target:
    """What a stage would run on here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fit(
    recipe: Recipe,
    model_config: PreTrainedConfig,
    stage: Stage,
    target: Target,
    capacity: int,
    reference: bool = True,
) -> Fit:
    """Plan a stage for so many bytes of memory.

    Raises:
        UserError: adapters where the model has no layers for them, or a model that cannot be planned.
    """
    planner = Planner(recipe, model_config, target, reference)
    plan, largest = _plan(planner, stage, capacity), None
    if STAGES[stage].samples:
        largest = planner.largest_budget(capacity)
    changes: list[Change] = []
    if plan.peak.total > capacity:
        for key, value in _candidates(recipe, stage, target):
            changed = Planner(_with(recipe, key, value), model_config, target, reference)
            changes.append(Change(key, value, _plan(changed, stage, capacity).peak.total))
        worth = 0.99 * plan.peak.total
        changes = sorted((change for change in changes if change.peak < worth), key=lambda change: change.peak)
    return Fit(plan, capacity, largest, changes)


def all_fit(
    recipe: Recipe, model_config: PreTrainedConfig, stages: Iterable[Stage], target: Target, capacity: int
) -> bool:
    """Whether each of the stages fits into so many bytes; what would help is not looked for, which takes far longer.

    Raises:
        UserError: as for `fit`.
    """
    plans = plans_of(recipe, model_config, stages, target, capacity)
    return all(plan.peak.total <= capacity for plan in plans)


def plans_of(
    recipe: Recipe,
    model_config: PreTrainedConfig,
    stages: Iterable[Stage],
    target: Target,
    capacity: int,
    reference: bool = True,
) -> Iterator[StagePlan]:
    """The plan of each stage for so many bytes, made when it is asked for; raises as `fit` does."""
    planner = Planner(recipe, model_config, target, reference)
    return (_plan(planner, stage, capacity) for stage in stages)


def plan_here(stage: Stage, recipe: Recipe, reference: bool = True) -> StagePlan | None:
    """What the stage takes in the memory that is free; None of a model that cannot be planned."""
    try:
        planner = Planner(recipe, load_model_config(recipe.model), this_target(), reference)
        return _plan(planner, stage, available_memory_bytes())
    except CannotPlanError:
        return None


def check_memory(stage: Stage, recipe: Recipe, reference: bool = True) -> None:
    """Before the model is loaded: can the stage run in the memory that is free?

    ppo lowers its token budgets by itself, and examples may be shorter than the recipe allows, so a stage is refused
    only if a single sequence of full length is too much; if the recipe's batch is, that is said.

    Raises:
        UserError: the stage cannot run.
    """
    capacity = available_memory_bytes()
    try:
        planner = Planner(recipe, load_model_config(recipe.model), this_target(), reference)
        plan = planner.smallest(stage) if STAGES[stage].samples else planner.supervised(stage)
        if plan.peak.total <= capacity:  # then a single sequence fits too
            return
        least = planner.smallest(stage)
    except CannotPlanError as error:
        logger.warning("%s; memory is not checked", error)
        return
    if least.peak.total > capacity:
        raise UserError(
            f"{stage}: takes {least.peak.total / GIB:.1f} GiB even with one sequence at a time ({least.peak.name}), "
            f"and {capacity / GIB:.1f} GiB are free; {_advice(stage, recipe)} (see `lorarlhf plan`)"
        )
    remedy = f"{stage}.per_device_{'eval' if plan.peak.name == 'evaluation' else 'train'}_batch_size"
    if STAGES[stage].scores:  # passes are of so many tokens, whatever the batches
        remedy = "data.max_length"
    logger.warning(
        "%s: full batches take %.1f GiB (%s), %.1f GiB are free; if it runs out, lower %s",
        stage,
        plan.peak.total / GIB,
        plan.peak.name,
        capacity / GIB,
        remedy,
    )


def auto_token_budget(recipe: Recipe, reference: bool = True) -> int:
    """What `ppo.micro_batch_tokens: auto` is: `tokens_a_pass` on a CPU, on a GPU what fits 0.9 of the free memory."""
    if this_target() == "cpu":
        return tokens_a_pass(torch.device("cpu"))
    planner = Planner(recipe, load_model_config(recipe.model), "cuda", reference)
    return _most_with_room(planner, available_memory_bytes())


def _most_with_room(planner: Planner, capacity: int) -> int:
    """Tokens of a micro-batch that leave a tenth free: for fragments, a desktop's windows and what no plan foresees."""
    return planner.largest_budget(capacity - capacity // 10) or planner.sequence_length


def _plan(planner: Planner, stage: Stage, capacity: int) -> StagePlan:
    """The plan of what would really happen: on a GPU, ppo decodes fewer responses at a time if it must."""
    if not STAGES[stage].samples:
        return planner.supervised(stage)
    budget = planner.recipe.ppo.micro_batch_tokens
    if budget == "auto":
        budget = tokens_a_pass(torch.device("cpu"))
        if planner.target == "cuda":
            budget = _most_with_room(planner, capacity)
    return planner.rollout_that_fits(capacity, budget) if planner.target == "cuda" else planner.ppo(budget)


def _candidates(recipe: Recipe, stage: Stage, target: Target) -> Iterator[tuple[str, Any]]:
    """Keys that take less memory, each with the value to try."""
    config = getattr(recipe, stage)
    if recipe.model.quantization != "nf4":
        yield "model.quantization", "nf4"
    if not config.gradient_checkpointing:
        yield f"{stage}.gradient_checkpointing", True
    if target == "cuda" and "8bit" not in config.optim:
        yield f"{stage}.optim", "paged_adamw_8bit"
    if recipe.lora.r > 8:
        yield "lora.r", 8
    if STAGES[stage].samples:
        length = recipe.data.max_prompt_length + recipe.ppo.response_length
        if recipe.ppo.micro_batch_tokens == "auto" or recipe.ppo.micro_batch_tokens > length:
            yield "ppo.micro_batch_tokens", length
        least = math.lcm(recipe.ppo.num_mini_batches, recipe.ppo.generations)  # a batch is a multiple of both
        if target == "cpu" and least < recipe.ppo.batch_size:
            yield "ppo.batch_size", least
        if target == "cpu" and recipe.ppo.eval_every:
            yield "ppo.eval_prompts", recipe.ppo.num_mini_batches
        yield "ppo.response_length", max(1, recipe.ppo.response_length // 2)
        yield "data.max_prompt_length", max(1, recipe.data.max_prompt_length // 2)
        return
    if config.per_device_train_batch_size > 1:
        yield f"{stage}.per_device_train_batch_size", 1
    if config.per_device_eval_batch_size > 1 and not STAGES[stage].scores:
        yield f"{stage}.per_device_eval_batch_size", 1
    yield "data.max_length", max(1, recipe.data.max_length // 2)


def _advice(stage: Stage, recipe: Recipe) -> str:
    config = getattr(recipe, stage)
    keys = []
    if recipe.model.quantization != "nf4":
        keys.append("set model.quantization=nf4")
    if not config.gradient_checkpointing:
        keys.append(f"set {stage}.gradient_checkpointing=true")
    keys.append(f"lower {'ppo.response_length' if STAGES[stage].samples else 'data.max_length'}")
    return ", ".join([*keys, "or take a smaller model"])


def _with(recipe: Recipe, key: str, value: object) -> Recipe:
    section, name = key.split(".")
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})

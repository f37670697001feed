"""What a stage would do, said without loading anything."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from lorarlhf.errors import UserError, first_line
from lorarlhf.manifest import find_checkpoint
from lorarlhf.recipe.sections import ModelConfig, PPOConfig, Recipe, Stage, WeightedFunction
from lorarlhf.recipe.shipped import exists, resolve_path
from lorarlhf.recipe.stages import STAGES
from lorarlhf.rl.functions import check_module
from lorarlhf.run import Run
from lorarlhf.stages.origins import adapters_there, check_origins
from lorarlhf.stages.settings import check_unchanged


def steps(
    stage: Stage,
    recipe: Recipe,
    run: Run,
    reward: str | None = None,
    before: Collection[Stage] = (),
    resume: bool = False,
) -> Iterator[tuple[str, str]]:
    """Verb and object of each thing that the stage would do, in order.

    Args:
        before: stages that will have been done by then.
        resume: it goes on from its last checkpoint.

    Raises:
        UserError: there is no checkpoint to go on from, or it was made with other settings; or the module of a reward
            function is not there.
    """
    info = STAGES[stage]
    yield "load", f"{recipe.model.name} ({recipe.model.quantization}), once"
    if resume:
        checkpoint = find_checkpoint(run.stage(stage))
        check_unchanged(recipe, run, stage)
        if info.samples:
            check_origins(run.stage(stage), adapters_there(recipe, run, reward))
        yield "resume", f"from {checkpoint}"
    elif info.starts_from:
        has_start = info.starts_from in before or run.has_adapter(info.starts_from)
        start = run.stage(info.starts_from) if has_start else "the bare base model"
        yield "start", f"from {start}"
    if info.needs:
        for entry in recipe.ppo.reward_functions:
            check_module(WeightedFunction.of(entry).function, recipe.requires)
        yield "score", _reward(recipe.ppo, run, info.needs, reward, info.needs in before)
    if info.samples:
        yield "update", _learning(recipe.ppo)
    source, most = info.source(recipe.data) or f"(set data.{info.data_key} or --dataset)", recipe.data.max_examples
    yield "train", f"{stage} on {f'at most {most:,} examples of {source}' if most else source}"
    if recipe.data.eval_examples:
        yield "test", f"on at most {recipe.data.eval_examples:,} held-out examples"
    yield "write", str(run.stage(stage))


def _reward(config: PPOConfig, run: Run, needs: Stage, reward: str | None, will_be_there: bool) -> str:
    """What gives the reward; a dry run may be asked for before there is a reward model."""
    given = [WeightedFunction.of(entry).function for entry in config.reward_functions]
    is_there = reward or will_be_there or run.has_adapter(needs)
    if config.reward_model_weight and (is_there or not given):
        given.insert(0, reward or f"{run.stage(needs)}{'' if is_there else ', which is not there yet'}")
    return (
        f"with {', '.join(given)}" if given else "with nothing: ppo.reward_model_weight is 0, and no function is named"
    )


def _learning(config: PPOConfig) -> str:
    if config.advantage_estimator == "gae":
        return f"policy and critic ({config.algorithm})"
    return f"the policy, without a critic ({config.algorithm}, {config.generations} responses to each prompt)"


def has_model_config(config: ModelConfig) -> bool:
    """Whether the model's config is here already: a dry run asks nobody for it.

    Raises:
        UserError: the name is none that the Hub can have, nor that of a folder.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    path = resolve_path(config.name)
    if exists(Path(path)) and Path(path).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(path, "config.json", revision=config.revision), str)
    except HFValidationError as error:
        raise UserError(f"model.name: {first_line(error)}; give a Hub id, or a folder that is there") from error

"""What a stage in a run was told, beside what it would be told now."""

from __future__ import annotations

import json
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import RECIPE, Run

SOURCE_KEYS = {name for info in STAGES.values() for key in info.data_keys for name in (key, f"{key}_test")}
# What decides nothing of what a stage learns: how often it writes, and in which pieces it computes. Batch size and
# accumulation are of these, since a resumed run keeps the rows of a step.
FREE = {
    *("save_steps", "save_every", "save_total_limit", "logging_steps", "report_to", "attn_implementation"),
    *("gradient_checkpointing", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "micro_batch_tokens", "stop_when", "on_nan", "reward_timeout"),
}
LONGER = {"iterations", "max_steps", "num_train_epochs"}  # a run that goes on may go further


def check_unchanged(recipe: Recipe, run: Run, stage: Stage) -> None:
    """Raise UserError if the stage would go on under other settings than it was begun with."""
    if other := other_settings(recipe, run, stage, begun=True):
        raise UserError(
            f"--resume: {run.stage(stage)} was begun with other settings ({'; '.join(other)}); take those again, as "
            "--resume does without --recipe, or begin anew without --resume"
        )


def other_settings(recipe: Recipe, run: Run, stage: Stage, begun: bool) -> list[str]:
    """What the stage in the run was told otherwise than it would be now, of what it depends on.

    Args:
        begun: it goes on, and may go further than it was told; False where it is done.
    """
    if not (run.stage(stage) / RECIPE).is_file():
        return []
    before, now = (_settings(each, stage) for each in (run.read_recipe(stage=stage), recipe))
    return [
        f"{key} {json.dumps(before.get(key))}, not {json.dumps(now.get(key))}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not _may_change(key, before.get(key), now.get(key), begun)
    ]


def _may_change(key: str, before: Any, now: Any, begun: bool) -> bool:
    name = key.rpartition(".")[2]
    if now == "auto" or name in FREE:  # "auto" stands in a run as what it came to
        return True
    if name == "eval_every":  # without any evaluation there is no best, and it may not lie behind
        return bool(before) and bool(now)
    return begun and name in LONGER and 0 < before < now


def _settings(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Dotted key to value of all that decides what the stage leaves."""
    info = STAGES[stage]
    has_critic = info.samples and recipe.ppo.advantage_estimator == "gae"
    sources = info.sources(recipe.data)
    sections: dict[str, dict[str, Any]] = {
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora.for_role("reward" if info.scores else "policy").model_dump(),
        "lora.critic": recipe.lora.for_role("critic").model_dump() if has_critic else {},
        "data": {
            key: value
            for key, value in recipe.data.model_dump(mode="json").items()
            if key in sources or key not in SOURCE_KEYS
        },
        stage: getattr(recipe, stage).model_dump(mode="json"),
    }
    dotted = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {**dotted, "seed": recipe.seed}

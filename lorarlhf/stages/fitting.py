"""Which of the recipes that ship fit this machine, without asking the Hub for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lorarlhf.backbone.load import load_model_config
from lorarlhf.errors import UserError
from lorarlhf.memory import available_memory_bytes
from lorarlhf.planner.fit import all_fit, this_target
from lorarlhf.planner.plan import Target
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.recipe.shipped import RecipeInfo, list_recipes, planned_for, resolve_path
from lorarlhf.recipe.stages import trained_by

GIB = 2**30
Verdict = Literal["fits", "does not fit", "for a GPU", "not known"]


def shipped_verdicts() -> dict[str, Verdict]:
    """Of each recipe that ships, whether all stages that it trains fit into the memory that is free."""
    target, capacity = this_target(), available_memory_bytes()
    return {info.name: verdict(info, target, capacity) for info in list_recipes()}


def verdict(info: RecipeInfo, target: Target, capacity: int) -> Verdict:
    """By the planner where the model's config is here already, else by what the recipe's header says it has found."""
    said = planned_for(info.path)
    if said and target == "cpu":
        return "for a GPU"
    recipe = load_recipe(info.name)
    folder = model_folder(recipe.model)
    if folder is not None:
        here = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(folder)})})
        try:
            config = load_model_config(here.model)
            fits = all_fit(here, config, trained_by(recipe), target, capacity)
        except UserError:  # the config is of a model that cannot be planned
            return "not known"
        return "fits" if fits else "does not fit"
    if said:
        fits = all(said.peaks[stage] * GIB <= capacity for stage in trained_by(recipe))
        return "fits" if fits else "does not fit"
    return "not known"


def model_folder(config: ModelConfig) -> Path | None:
    """Where a model's config lies on this machine; None if it would have to be fetched."""
    from huggingface_hub import try_to_load_from_cache

    path = resolve_path(config.name)
    if Path(path).is_dir():
        return Path(path)
    cached = try_to_load_from_cache(path, "config.json", revision=config.revision)
    return Path(cached).parent if isinstance(cached, str) else None

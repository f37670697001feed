"""The sections of a recipe, a file for those that belong together; each key has its description under it."""

from lorarlhf.recipe.sections.data import Column, DataConfig, DataKey
from lorarlhf.recipe.sections.model import (
    TOP_LAYERS,
    LoraConfig,
    LoraOverride,
    LoraShape,
    ModelConfig,
    Quantization,
    Role,
    ScalarLoraOverride,
)
from lorarlhf.recipe.sections.ppo import PPOConfig, StopWhen, WeightedFunction
from lorarlhf.recipe.sections.section import Section
from lorarlhf.recipe.sections.source import BETWEEN, Source, Sources, sources_of, title_of
from lorarlhf.recipe.sections.training import (
    ObjectiveName,
    RewardConfig,
    SFTConfig,
    SupervisedConfig,
    Tracker,
    TrainingConfig,
)
from lorarlhf.recipe.sections.whole import STEPS, ExportConfig, MergeBase, Recipe, Stage, Step

__all__ = [
    "BETWEEN",
    "STEPS",
    "TOP_LAYERS",
    "Column",
    "DataConfig",
    "DataKey",
    "ExportConfig",
    "LoraConfig",
    "LoraOverride",
    "LoraShape",
    "MergeBase",
    "ModelConfig",
    "ObjectiveName",
    "PPOConfig",
    "Quantization",
    "Recipe",
    "RewardConfig",
    "Role",
    "SFTConfig",
    "ScalarLoraOverride",
    "Section",
    "Source",
    "Sources",
    "Stage",
    "Step",
    "StopWhen",
    "SupervisedConfig",
    "Tracker",
    "TrainingConfig",
    "WeightedFunction",
    "sources_of",
    "title_of",
]

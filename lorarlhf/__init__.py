"""RLHF on one consumer GPU: four LoRA roles on one frozen 4-bit backbone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lorarlhf.version import __version__ as __version__

if TYPE_CHECKING:
    from lorarlhf.backbone.load import load_backbone
    from lorarlhf.errors import UserError
    from lorarlhf.evaluation.reward_model import RewardModel
    from lorarlhf.recipe.load import load_recipe
    from lorarlhf.run import Run
    from lorarlhf.stages.evaluate import evaluate
    from lorarlhf.stages.export import export
    from lorarlhf.stages.ppo import train_ppo
    from lorarlhf.stages.reward import train_reward
    from lorarlhf.stages.sft import train_sft

__all__ = [
    "RewardModel",
    "Run",
    "UserError",
    "evaluate",
    "export",
    "load_backbone",
    "load_recipe",
    "train_ppo",
    "train_reward",
    "train_sft",
]


# Where each name lives: torch and transformers, which take seconds to import, come with the first name that needs them.
_MODULES = {
    "RewardModel": "lorarlhf.evaluation.reward_model",
    "Run": "lorarlhf.run",
    "UserError": "lorarlhf.errors",
    "evaluate": "lorarlhf.stages.evaluate",
    "export": "lorarlhf.stages.export",
    "load_backbone": "lorarlhf.backbone.load",
    "load_recipe": "lorarlhf.recipe.load",
    "train_ppo": "lorarlhf.stages.ppo",
    "train_reward": "lorarlhf.stages.reward",
    "train_sft": "lorarlhf.stages.sft",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})

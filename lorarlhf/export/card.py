"""The model card: what the model is, how to load it, and how it came to be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lorarlhf import strict_yaml
from lorarlhf.config import Recipe, Stage
from lorarlhf.recipes import SHIPPED

LIBRARIES = ("lorarlhf", "torch", "transformers", "peft", "trl", "bitsandbytes")
TAGS: dict[Stage, list[str]] = {
    "sft": ["lorarlhf", "lora", "sft"],
    "reward": ["lorarlhf", "lora", "rlhf", "reward-model"],
    "ppo": ["lorarlhf", "lora", "rlhf", "ppo"],
}
DATA_KEYS: dict[Stage, tuple[str, ...]] = {
    "sft": ("sft", "sft_test"),
    "reward": ("preferences", "preferences_test"),
    "ppo": ("prompts", "prompts_test"),
}


def model_card(recipe: Recipe, stage: Stage, summary: dict[str, Any], merged: bool, dtype: str) -> str:
    """The README.md of an export, with the metadata that the Hub reads. No folder of this computer is named in it."""
    return ""


def without_folders(value: str) -> str:
    """A name fit to be published: of an absolute path (or one below `~`) only the last part."""
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() or value.startswith("~"):
            return path.name
    return value

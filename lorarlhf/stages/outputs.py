"""What can be said of where a stage writes and what it asks to be installed, before anything is loaded.

Imports nothing heavy: dry runs ask too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lorarlhf.errors import UserError
from lorarlhf.files import free_bytes
from lorarlhf.lock import check_writable
from lorarlhf.recipe.sections import ModelConfig, Recipe, Stage

LEAST_DISK = 2**28  # bytes that no run of a real model's adapters and checkpoints gets by with


def check_outputs(stage: Stage, recipe: Recipe, run: Path) -> None:
    """See that the run's folder can be written, that its disk has room, and that the trackers are installed.

    Raises:
        UserError: one of that is not so.
    """
    free = free_bytes(check_writable(run))
    if free < LEAST_DISK:
        raise UserError(
            f"{run}: {free / 2**20:.0f} MiB are free on its disk, too little for adapters and checkpoints; make "
            "room, or give another --output-dir"
        )
    for name in getattr(recipe, stage).report_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{stage}.report_to: {name} is not installed; `pip install {name}`, or take it out")


def check_kernel(config: ModelConfig) -> None:
    """Raise UserError if the package of the attention kernel that the recipe names is not installed."""
    if config.attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attn_implementation: flash_attention_2 needs a CUDA GPU and the package flash-attn; "
            "use --set model.attn_implementation=sdpa"
        )

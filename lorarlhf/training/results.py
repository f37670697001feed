"""What a stage that goes through a data set leaves behind."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from lorarlhf.backbone.adapters import written_adapter
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.tokenize import Tokenized
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.recipe.sections import Role, Stage
from lorarlhf.run import Run
from lorarlhf.stopwatch import Stopwatch

NOTHING_HELD_OUT = "no held-out examples"


def training_summary(train: Tokenized, test: Tokenized, steps: int, stopwatch: Stopwatch) -> dict[str, Any]:
    """How much a stage has seen, of how many rows, and what that took."""
    return {
        "train_examples": len(train.dataset),
        "train_rows": train.rows,
        "eval_examples": len(test.dataset),
        "eval_rows": test.rows,
        "dropped_too_long": train.dropped + test.dropped,
        "steps": steps,
        "seconds": stopwatch.seconds,
        "peak_memory_gb": peak_memory_bytes() / 1e9,
    }


def save_results(run: Run, stage: Stage, backbone: SharedBackbone, role: Role, summary: dict[str, Any]) -> None:
    """Write the role's adapter, the tokenizer and, last, `summary.json`; nothing trains any more.

    All processes call this; the main one writes.
    """
    folder, state = run.stage(stage), PartialState()
    backbone.train_roles()
    if state.is_main_process:
        with written_adapter(folder) as part:
            backbone.save_role(role, part)
            backbone.tokenizer.save_pretrained(part)
        run.write_summary(stage, summary)
    state.wait_for_everyone()

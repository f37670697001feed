"""Export a stage of a run, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lorarlhf.publishing.merge import export_run
from lorarlhf.recipe.sections import Stage
from lorarlhf.run import Run


def export(
    run: Run | Path | str,
    to: Path | str,
    stage: Stage | None = None,
    merge: bool | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
) -> Path:
    """Write a stage's model with tokenizer and model card into the folder `to`, whole or not at all; return `to`.

    Args:
        run: a run, or its folder.
        to: a new folder, or that of an earlier export.
        stage: None takes the last one that has finished.
        merge: fold the adapter into the base model's weights, or leave it a plain PEFT adapter.
        dtype: of merged weights. Both are as in the run's recipe (`export`) if None.

    Raises:
        UserError: there is no such run or stage, or `to` holds anything else.
    """
    run, to = Run(run), Path(to)
    export_run(run, to, stage or run.last_stage(), merge, dtype)
    return to

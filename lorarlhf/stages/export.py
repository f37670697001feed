"""Export a stage of a run, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lorarlhf.errors import UserError
from lorarlhf.publishing.merge import export_run
from lorarlhf.recipe.sections import Stage
from lorarlhf.run import BEST, Run


def export(
    run: Run | Path | str,
    to: Path | str,
    stage: Stage | None = None,
    merge: bool | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    checkpoint: str | int = BEST,
    anyway: bool = False,
) -> Path:
    """Write a stage's model with tokenizer and model card into the folder `to`, whole or not at all; return `to`.

    Args:
        run: a run, or its folder.
        to: a new folder, or that of an earlier export.
        stage: None takes the last one that has finished.
        merge: fold the adapter into the base model's weights, or leave it a plain PEFT adapter.
        dtype: of merged weights. Both are as in the run's recipe (`export`) if None.
        checkpoint: another adapter than the one that was kept, see `Run.adapter`.
        anyway: also a policy that is still the one from before training.

    Raises:
        UserError: there is no such run, stage or checkpoint, or `to` holds anything else.
    """
    run, to = Run(run), Path(to)
    stage = stage or run.last_stage()
    check_improved(run, stage, checkpoint, anyway)
    export_run(run, to, stage, merge, dtype, checkpoint)
    return to


def check_improved(run: Run, stage: Stage, checkpoint: str | int, anyway: bool) -> None:
    """Raise UserError if what is to leave is the policy that training began with, unless told `anyway`."""
    if checkpoint == BEST and not anyway and run.read_summary(stage).get("improved") is False:
        raise UserError(
            f"{run.stage(stage)}: the policy kept is the one from before training, as none was better on the held-out "
            "prompts; export it all the same with --anyway, or another with --checkpoint last"
        )

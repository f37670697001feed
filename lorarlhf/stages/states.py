"""How far the stages of a run are, by what they have recorded and not by when files were written: copies have no times.

Imports nothing heavy: dry runs ask too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lorarlhf.errors import UserError
from lorarlhf.manifest import numbered_checkpoints
from lorarlhf.recipe.sections import Recipe, Stage, Step
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import Run
from lorarlhf.stages.origins import adapters_there, has_origins
from lorarlhf.stages.settings import other_settings

State = Literal["done", "begun", "new"]
DONE: State = "done"
BEGUN: State = "begun"
NEW: State = "new"


def states_of(recipe: Recipe, run: Run, training: Sequence[Stage]) -> dict[Step, State]:
    """How far the stages are. A policy that is made of what is not done yet is left out: it is to be made anew.

    Raises:
        UserError: what is there was made with other settings.
    """
    states: dict[Step, State] = {}
    for stage in training:
        if STAGES[stage].samples and any(state != DONE for state in states.values()):
            break
        state = _state(recipe, run, stage)
        if state != NEW and (other := other_settings(recipe, run, stage, begun=state == BEGUN)):
            raise UserError(
                f"{run.stage(stage)}: was made with other settings ({'; '.join(other)}); take those again, another "
                "--output-dir, or --anew to do everything again"
            )
        states[stage] = state
    return states


def _state(recipe: Recipe, run: Run, stage: Stage) -> State:
    """Done: the summary, which is written last, has come as far as the newest checkpoint.

    New, too: made from other adapters than lie there now.
    """
    info, folder = STAGES[stage], run.stage(stage)
    if info.samples and not has_origins(folder, adapters_there(recipe, run)):
        return NEW
    newest = next((int(path.name.partition("-")[2]) for path in numbered_checkpoints(folder)), 0)
    summary = run.read_summary(stage) if run.has_adapter(stage) else {}
    if summary and summary.get(f"{info.unit}s", 0) >= newest:
        return DONE
    return BEGUN if newest else NEW

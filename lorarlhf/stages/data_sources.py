"""What can be said of a stage's data before anything is loaded. Imports nothing heavy: dry runs ask too."""

from __future__ import annotations

from lorarlhf.data.examples import (
    SPLITS,
    check_sources,
    lie_here,
    stream_demonstrations,
    stream_preferences,
    stream_scored,
)
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.recipe.stages import STAGES


def check_data(stage: Stage, recipe: Recipe, online: bool = True) -> None:
    """See that the stage's files are there, and read a row of each source as the stage does.

    Args:
        online: ask the Hub too, where the data lie there.

    Raises:
        UserError: a file is not there, no source is set, or a row is of no form that the stage can use.
    """
    keys = STAGES[stage].data_keys
    check_sources(recipe.data, keys, online)
    if not online and not lie_here(recipe.data, keys):
        return
    splits = SPLITS if online else SPLITS[:1]
    if stage == "sft":
        for split in splits:
            stream_demonstrations(recipe.data, split).check()
    elif stage == "reward":
        stream = stream_preferences if recipe.reward.objective == "bradley_terry" else stream_scored
        for split in splits:
            stream(recipe.data, split).check()

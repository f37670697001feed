"""What can be said of a stage's data before anything is loaded. Imports nothing heavy: dry runs ask too."""

from __future__ import annotations

from lorarlhf.data.examples import check_sources, lie_here, stream_demonstrations, stream_preferences, stream_scored
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
    if stage == "sft":
        stream_demonstrations(recipe.data, "train").check()
    elif stage == "reward":
        stream = stream_preferences if recipe.reward.objective == "bradley_terry" else stream_scored
        stream(recipe.data, "train").check()

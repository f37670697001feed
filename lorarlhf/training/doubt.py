"""Whether a reward model has learnt what a person could not have written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorarlhf.intervals import Estimate


def doubt_of(summary: Mapping[str, Any]) -> str | None:
    """Of a reward model that is not shown to beat the better baseline: so, in one line. None of one that is.

    Args:
        summary: what an objective's `held_out` and `baselines` measured, if they did.
    """
    if "bag_of_words_accuracy" not in summary or "eval_accuracy_interval" not in summary:
        return None
    rivals = {"preferring the longer": "longer_wins_accuracy", "a bag of words": "bag_of_words_accuracy"}
    name = max(rivals, key=lambda name: summary[rivals[name]])
    accuracy = Estimate(summary["eval_accuracy"], *summary["eval_accuracy_interval"])
    if accuracy.low > summary[rivals[name]]:
        return None
    beaten = "does not beat" if accuracy.value <= summary[rivals[name]] else "is not shown to beat"
    return (
        f"the reward model {beaten} {name} on held-out comparisons: {accuracy.value:.1%} "
        f"(95%: {accuracy.low:.1%} to {accuracy.high:.1%}) against {summary[rivals[name]]:.1%}"
    )

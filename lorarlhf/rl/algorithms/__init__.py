"""The algorithms, by the name that `ppo.advantage_estimator` gives them. A new one is a file and a line here."""

from __future__ import annotations

from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.algorithms.algorithm import Algorithm, LossTerm
from lorarlhf.rl.algorithms.gae import GAE
from lorarlhf.rl.algorithms.grpo import GRPO
from lorarlhf.rl.algorithms.rloo import RLOO

ALGORITHMS: dict[str, type[Algorithm]] = {"gae": GAE, "rloo": RLOO, "grpo": GRPO}

__all__ = ["ALGORITHMS", "GAE", "GRPO", "RLOO", "Algorithm", "LossTerm", "make_algorithm"]


def make_algorithm(config: PPOConfig) -> Algorithm:
    """The algorithm that the recipe names."""
    return ALGORITHMS[config.advantage_estimator](config)

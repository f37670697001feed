"""Which prompts an iteration takes, and what comes every so many iterations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lorarlhf.data.tokenize import PromptExample


@dataclass(frozen=True)
class PromptStream:
    """An endless stream of prompts in shuffled epochs; what an iteration takes depends on its number and the seed.

    Args:
        batch_size: responses of an iteration.
        num_generations: of them to each prompt, one behind the other.
    """

    examples: Sequence[PromptExample]
    batch_size: int
    num_generations: int
    seed: int

    def batch(self, iteration: int, rows: range) -> list[PromptExample]:
        """The prompts of some rows of an iteration, each `num_generations` times."""
        count = self.batch_size // self.num_generations
        prompts = prompt_rows(len(self.examples), count, iteration, self.seed)
        return [self.examples[prompts[row // self.num_generations]] for row in rows]


def prompt_rows(n_prompts: int, count: int, iteration: int, seed: int) -> list[int]:
    """Indices of one iteration's prompts in an endless stream of shuffled epochs; depends on nothing else."""
    rows: list[int] = []
    for position in range(iteration * count, (iteration + 1) * count):
        epoch, offset = divmod(position, n_prompts)
        if not rows or offset == 0:
            order = list(range(n_prompts))
            random.Random(f"{seed}-{epoch}").shuffle(order)
        rows.append(order[offset])
    return rows


def is_due(iteration: int, every: int, is_last: bool) -> bool:
    """Every so many iterations and after the last one; never if `every` is 0."""
    return every > 0 and (is_last or iteration % every == 0)

"""Which prompts an iteration takes, and what happens at its end."""

from __future__ import annotations

import random


def is_due(iteration: int, every: int, is_last: bool) -> bool:
    """Every so many iterations and after the last one; never if `every` is 0."""
    return every > 0 and (is_last or iteration % every == 0)


def prompt_rows(n_prompts: int, batch_size: int, iteration: int, seed: int) -> list[int]:
    """Rows of one iteration's prompts in an endless stream of shuffled epochs; depends on nothing else."""
    rows: list[int] = []
    for position in range(iteration * batch_size, (iteration + 1) * batch_size):
        epoch, offset = divmod(position, n_prompts)
        if not rows or offset == 0:
            order = list(range(n_prompts))
            random.Random(f"{seed}-{epoch}").shuffle(order)
        rows.append(order[offset])
    return rows

"""Best of N: of several responses the one that the reward model likes best, which is no training at all.

The baseline that RL has to beat (Stiennon et al. 2020; Gao et al. 2023): it optimises the same reward, and how far it
goes from the policy it samples is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from lorarlhf.data.tokenize import PromptExample
from lorarlhf.preferences.sampling import Sampler, as_completion, scored_responses, write_batches


@dataclass(frozen=True)
class BestOf:
    """What came of it.

    Attributes:
        prompts: how many.
        best, first: mean score of the best response to a prompt, and of the first, which is the policy's own.
        kl: most nats a response that the best can be from the policy, in the mean.
    """

    prompts: int
    best: float
    first: float
    kl: float


def write_best(sampler: Sampler, prompts: Sequence[PromptExample], out: Path, progress: Progress) -> BestOf:
    """Write the best of `sampler.n` responses to each prompt into `out`, a row each; go on with one that was cut off.

    Args:
        sampler: of one role, on a backbone with a reward role.

    Raises:
        UserError: `out` holds something else, or rows sampled with other options.
    """
    rows = write_batches(out, sampler.options, prompts, partial(_best, sampler), progress)
    best, first = (sum(row[key] for row in rows) / len(rows) for key in ("score", "first_score"))
    return BestOf(len(rows), best, first, best_of_kl(sampler.n))


def best_of_kl(n: int) -> float:
    """KL(best of n || policy) in nats where no two responses are alike: log n - (n - 1) / n.

    Stiennon et al. 2020, appendix G.3. Where some are, as from a policy of few words, it is less (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def rank_weights(n: int, of: int) -> np.ndarray:
    """[of] how probable it is that each of the responses is the best of `n` drawn from all, the worst response first.

    With it, one draw of `of` responses tells what best-of-n gives for every n up to that, without bias (Nakano et al.
    2021, appendix I): the best is that of rank r in C(r - 1, n - 1) of C(of, n) draws.
    """
    return np.array([math.comb(rank, n - 1) / math.comb(of, n) for rank in range(of)])


def _best(sampler: Sampler, batch: Sequence[PromptExample], number: int) -> list[dict[str, Any]]:
    rows = []
    for example, responses in zip(batch, scored_responses(sampler, batch, 0, number), strict=True):
        text, score = max(responses, key=lambda response: response[1])  # the first of equals
        rows.append(
            {
                "prompt": example.prompt,
                "response": as_completion(example.prompt, text),
                "score": score,
                "first_score": responses[0][1],
                "of": sampler.n,
            }
        )
    return rows

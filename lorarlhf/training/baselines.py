"""What a reward model has to beat: which response wins by its words alone, and by its length alone.

One that does not has learnt nothing that a person could not have written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

# Pairs that the words are learnt from: more change the accuracy of so plain a model little, and take minutes.
PAIRS = 20_000
# The inverse of the penalty. On 4,000 + 4,000 pairs of HH-RLHF helpful 0.67, where 0.1 gave 0.66 and 1 gave 0.63.
STRENGTH = 0.01


def bag_of_words(train: Dataset, test: Dataset) -> Tensor:
    """[N] by how much a logistic regression on tokens, in whatever order, prefers the chosen response of a test pair.

    It is Bradley and Terry's model (1952) with a score linear in log(1 + count) of each token. What both responses
    have, such as the prompt, cancels out.

    Args:
        train, test: columns `chosen_ids` and `rejected_ids`, and `tie` where some pair has no winner.
    """
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    if "tie" in train.column_names:
        train = train.filter(lambda tie: not tie, input_columns="tie")
    train = train.select(range(min(PAIRS, len(train))))
    if not len(train):
        return torch.zeros(len(test))
    seen, unseen = _differences(train), _differences(test)
    width = max(seen.shape[1], unseen.shape[1])
    seen.resize(seen.shape[0], width)
    unseen.resize(unseen.shape[0], width)
    # Each pair both ways round: the model has no side that it prefers, and two classes to tell apart.
    wins = np.repeat([1, 0], seen.shape[0])
    model = LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=200).fit(vstack([seen, -seen]), wins)
    return torch.from_numpy(model.decision_function(unseen))


def _differences(pairs: Dataset) -> Any:
    """[N, V] sparse: of each token, log(1 + count in chosen) - log(1 + count in rejected)."""
    chosen, rejected = (_log_counts(pairs[column]) for column in ("chosen_ids", "rejected_ids"))
    width = max(chosen.shape[1], rejected.shape[1])
    for counts in (chosen, rejected):
        counts.resize(counts.shape[0], width)
    return chosen - rejected


def _log_counts(rows: Sequence[Sequence[int]]) -> Any:
    from scipy.sparse import csr_matrix

    ends, tokens, counts = [0], list[int](), list[int]()
    for row in rows:
        counted = Counter(row)
        tokens += counted.keys()
        counts += counted.values()
        ends.append(len(tokens))
    return csr_matrix((np.log1p(counts), tokens, ends))

"""Halving what is computed at a time, and putting micro-batches together."""

import pytest
import torch

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.budget import TokenBudget, in_micro_batches
from lorarlhf.errors import UserError


def fails_above(limit):
    seen = []

    def attempt(tokens):
        seen.append(tokens)
        if tokens > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    return attempt, seen


def test_halves_until_it_fits_and_stays_there(caplog):
    budget = TokenBudget("update", 4096)
    attempt, seen = fails_above(300)
    assert budget.run(attempt, most=1600, least=50) == "done"
    assert seen == [1600, 800, 400, 200]
    assert budget.run(attempt, most=1600, least=50) == "done"
    assert seen[4:] == [200]
    assert caplog.messages[-1] == "update: out of memory; going on with 200 tokens at a time"


def test_a_smaller_batch_does_not_lower_the_budget():
    budget = TokenBudget("update", 4096)
    attempt, seen = fails_above(5000)
    budget.run(attempt, most=10, least=5)
    budget.run(attempt, most=9000, least=5)
    assert seen == [10, 4096]


def test_a_single_sequence_that_does_not_fit_is_the_users_to_know():
    attempt, seen = fails_above(40)
    with pytest.raises(UserError, match=r"scoring: out of memory with a single sequence of 60 tokens; lower"):
        TokenBudget("scoring", 4096).run(attempt, most=200, least=60)
    assert seen == [200, 100, 60]


def test_other_errors_pass():
    def attempt(tokens):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        TokenBudget("scoring", 4096).run(attempt, most=200, least=60)


@pytest.mark.parametrize("tokens", [1, 12, 1000])
def test_results_come_back_in_the_order_of_the_rows(tokens):
    sequences = TokenBatch.from_lists([[1, 2], [3], [4, 5, 6], [7]], [[8], [9, 10, 11, 12], [13, 14], []])
    groups = []

    def compute(micro, rows):
        groups.append(len(rows))
        states = micro.tokens.unsqueeze(-1).float().repeat(1, 1, 3)
        return micro.response_mask * (rows + 1.0).unsqueeze(1), states

    per_token, states = in_micro_batches(sequences, TokenBudget("t", tokens), compute, (4, 5))
    assert per_token.tolist() == [[1, 0, 0, 0], [2, 2, 2, 2], [3, 3, 0, 0], [0, 0, 0, 0]]
    assert states.shape == (4, 5, 3)
    for row, (length, ids) in enumerate(zip(sequences.lengths, sequences.tokens, strict=True)):
        assert states[row, :length, 1].tolist() == ids[:length].tolist()
    assert len(groups) == {1: 4, 12: 2, 1000: 1}[tokens]

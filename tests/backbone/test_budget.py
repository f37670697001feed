"""Halving what is computed at a time, and putting micro-batches together."""

import itertools
import logging

import pytest
import torch

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.budget import SUCCESSES_BEFORE_MORE, TokenBudget, in_micro_batches, no_second_attempt
from lorarlhf.errors import UserError


def fails_above(limit, error=torch.OutOfMemoryError):
    """An attempt, and the tokens that it was asked for so far. `limit` may be a list, whose last number counts."""
    seen = []

    def attempt(tokens):
        seen.append(tokens)
        if tokens > (limit[-1] if isinstance(limit, list) else limit):
            raise error("CUDA error: out of memory")
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


@pytest.mark.parametrize("error", [RuntimeError, torch.AcceleratorError, MemoryError])
def test_whoever_says_it(error):
    attempt, seen = fails_above(300, error)
    assert TokenBudget("update", 4096).run(attempt, most=1600, least=50) == "done"
    assert seen == [1600, 800, 400, 200]


def test_a_halving_that_was_too_careful_is_made_good_step_by_step(caplog):
    """Another program had the memory for a while."""
    budget, limit = TokenBudget("update", 1600), [900]
    attempt, seen = fails_above(limit)
    budget.run(attempt, most=2000, least=50)
    assert seen == [1600, 800]
    limit.append(10_000)
    tried = [seen[-1] for _ in range(4 * SUCCESSES_BEFORE_MORE) if budget.run(attempt, most=2000, least=50)]
    assert sorted(set(tried)) == [800, 1000, 1250, 1562, 1600]
    assert tried == sorted(tried)
    assert max(seen) == 1600  # never more than it began with
    (warning,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert "out of memory; going on with 800 tokens" in warning.getMessage()


def test_trying_more_gets_rarer_each_time_it_fails():
    budget = TokenBudget("update", 1600)
    attempt, seen = fails_above(900)
    for _ in range(20 * SUCCESSES_BEFORE_MORE):
        assert budget.run(attempt, most=2000, least=50) == "done"
    failures = [i for i, tokens in enumerate(seen) if tokens > 900]
    assert set(seen) == {1600, 800, 1000}
    waits = [later - earlier for earlier, later in itertools.pairwise(failures)]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(waits))
    assert 3 <= len(failures) <= 6


def test_where_memory_has_become_less_it_halves_again():
    budget, limit = TokenBudget("update", 1600), [900]
    attempt, seen = fails_above(limit)
    for _ in range(SUCCESSES_BEFORE_MORE):
        budget.run(attempt, most=2000, least=50)
    assert budget.tokens == 1000
    limit.append(450)
    seen.clear()
    budget.run(attempt, most=2000, least=50)
    assert seen == [1000, 800, 400]


def test_batches_smaller_than_the_budget_say_nothing_of_it():
    budget = TokenBudget("update", 1600)
    attempt, _ = fails_above(900)
    budget.run(attempt, most=2000, least=50)
    for _ in range(3 * SUCCESSES_BEFORE_MORE):
        budget.run(attempt, most=300, least=50)
    assert budget.tokens == 800


def test_what_cannot_be_tried_again_ends_in_one_line():
    line = r"^step: out of memory; buy more\. Checkpoints stand: go on with --resume$"
    with pytest.raises(UserError, match=line), no_second_attempt("step", "buy more"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
    with pytest.raises(RuntimeError, match="no kernel"), no_second_attempt("step", "buy more"):
        raise RuntimeError("no kernel")


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

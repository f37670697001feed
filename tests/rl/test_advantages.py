import threading
from concurrent.futures import ThreadPoolExecutor

import ppo_reference as reference
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lorarlhf.rl.advantages import generalized_advantages, token_rewards, whiten

GARBAGE = [0.0, -7.5, 1e30, -1e30]
DISCOUNTS = [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)]


def tensor(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor(reference.padded(rows, width))


def all_valid(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def fill(x: Tensor, mask: Tensor, value: float) -> Tensor:
    return torch.where(mask, x, value)


def widen(x: Tensor, columns: int, value: float = 3.0) -> Tensor:
    padding = torch.full((x.shape[0], columns), value).to(x.dtype)
    return torch.cat([x, padding], dim=1)


def widen_mask(mask: Tensor, columns: int) -> Tensor:
    return torch.cat([mask, torch.zeros(mask.shape[0], columns, dtype=torch.bool)], dim=1)


# Generalised advantage estimation


def test_advantages_worked_by_hand():
    # gamma = lam = 1/2. Row 0: delta = (-1/4, -1/4, 1/2), A2 = 1/2, A1 = -1/4 + A2/4, A0 = -1/4 + A1/4.
    # Row 1 ends after two tokens: delta = (1 + 1/2 * 4 - 2, 3 - 4), A1 = -1, A0 = 1 + A1/4.
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 3.0, 99.0]])
    values = torch.tensor([[0.5, 0.5, 0.5], [2.0, 4.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    assert_close(advantages, torch.tensor([[-0.28125, -0.125, 0.5], [0.75, -1.0, 0.0]]))
    assert_close(returns, torch.tensor([[0.21875, 0.375, 1.0], [2.75, 3.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "lam"), DISCOUNTS)
def test_advantages_equal_the_reference(batch, gamma, lam):
    rewards = reference.ragged(batch.rewards.tolist(), batch.lengths)
    values = reference.ragged(batch.values.tolist(), batch.lengths)
    expected = [reference.advantages(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    expected_returns = [[a + b for a, b in zip(x, v, strict=True)] for x, v in zip(expected, values, strict=True)]
    advantages, returns = generalized_advantages(batch.rewards, batch.values, batch.mask, gamma=gamma, lam=lam)
    assert advantages.dtype == returns.dtype == torch.float32
    assert_close(advantages, tensor(expected, batch.width), atol=1e-5, rtol=1e-5)
    assert_close(returns, tensor(expected_returns, batch.width), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_one_is_the_reward_to_go_less_the_value(batch, gamma):
    rewards = reference.ragged(batch.rewards.tolist(), batch.lengths)
    expected = tensor([reference.rewards_to_go(row, gamma) for row in rewards], batch.width)
    advantages, returns = generalized_advantages(batch.rewards, batch.values, batch.mask, gamma=gamma, lam=1.0)
    assert_close(returns, expected, atol=1e-5, rtol=1e-5)
    assert_close(advantages, expected - fill(batch.values, batch.mask, 0.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_zero_is_the_temporal_difference(batch, gamma):
    rewards = reference.ragged(batch.rewards.tolist(), batch.lengths)
    values = reference.ragged(batch.values.tolist(), batch.lengths)
    expected = [reference.temporal_differences(r, v, gamma) for r, v in zip(rewards, values, strict=True)]
    advantages, _ = generalized_advantages(batch.rewards, batch.values, batch.mask, gamma=gamma, lam=0.0)
    assert_close(advantages, tensor(expected, batch.width), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_advantages_ignore_padding(batch, garbage):
    clean = generalized_advantages(
        fill(batch.rewards, batch.mask, 0.0), fill(batch.values, batch.mask, 0.0), batch.mask, gamma=0.9, lam=0.8
    )
    rewards, values = fill(batch.rewards, batch.mask, garbage), fill(batch.values, batch.mask, garbage)
    for result, expected in zip(
        generalized_advantages(rewards, values, batch.mask, gamma=0.9, lam=0.8), clean, strict=True
    ):
        assert torch.equal(result, expected)
        assert (result[~batch.mask] == 0).all()


def test_padding_columns_and_the_order_of_rows_do_not_change_advantages(batch):
    plain = generalized_advantages(batch.rewards, batch.values, batch.mask, gamma=0.9, lam=0.8)
    wide = generalized_advantages(
        widen(batch.rewards, 3), widen(batch.values, 3), widen_mask(batch.mask, 3), gamma=0.9, lam=0.8
    )
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    shuffled = generalized_advantages(batch.rewards[order], batch.values[order], batch.mask[order], gamma=0.9, lam=0.8)
    for before, padded, moved in zip(plain, wide, shuffled, strict=True):
        assert torch.equal(padded[:, : batch.width], before)
        assert (padded[:, batch.width :] == 0).all()
        assert torch.equal(moved, before[order])


def test_advantages_leave_their_inputs_alone(batch):
    rewards, values, mask = batch.rewards.clone(), batch.values.clone(), batch.mask.clone()
    generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.8)
    whiten(rewards, mask)
    token_rewards(batch.scores, 0.1 * rewards, mask)
    assert torch.equal(rewards, batch.rewards)
    assert torch.equal(values, batch.values)
    assert torch.equal(mask, batch.mask)


# Whitening


def test_whitening_worked_by_hand():
    # The valid tokens are 1, 1, 5, 5: mean 3, biased variance 4 (the unbiased one would be 16/3).
    x = torch.tensor([[1.0, 5.0, 80.0], [5.0, 80.0, 80.0], [1.0, 80.0, 80.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [True, False, False]])
    assert_close(whiten(x, mask), torch.tensor([[-1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    kept = whiten(x, mask, shift_mean=False)
    assert_close(kept, torch.tensor([[2.0, 4.0, 0.0], [4.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))


def test_the_epsilon_is_inside_the_root():
    # Mean 0 and variance 1e-8, so the root is of 2e-8: each token is off by one over the root of two.
    assert_close(whiten(torch.tensor([[1e-4, -1e-4]]), all_valid(1, 2)), torch.tensor([[0.5**0.5, -(0.5**0.5)]]))


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("offset", [0.0, 2.5, 1000.0])
def test_whitening_equals_the_reference(batch, shift_mean, offset):
    x = batch.advantages + offset
    expected = reference.whiten(reference.ragged(x.tolist(), batch.lengths), shift_mean)
    tolerance = 1e-5 if offset < 1000 else 1e-3
    result = whiten(x, batch.mask, shift_mean=shift_mean)
    assert_close(result, tensor(expected, batch.width), atol=tolerance, rtol=1e-5)


def test_whitened_tokens_have_mean_zero_and_variance_one(batch):
    tokens = whiten(batch.advantages, batch.mask)[batch.mask].double()
    assert_close(tokens.mean().item(), 0.0, atol=1e-6, rtol=0)
    assert_close(tokens.var(unbiased=False).item(), 1.0, atol=1e-5, rtol=0)


def test_whitening_is_over_the_whole_batch_not_each_row():
    x = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    assert_close(whiten(x, all_valid(2, 2)), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


@pytest.mark.parametrize(
    ("lengths", "value"), [([0, 0], 5.0), ([1, 0], 5.0), ([2, 2], 0.25)], ids=["none", "single", "constant"]
)
def test_tokens_without_spread_whiten_to_zero(lengths, value):
    mask = torch.arange(2) < torch.tensor(lengths)[:, None]
    assert_close(whiten(fill(torch.full((2, 2), value), mask, 9.0), mask), torch.zeros(2, 2))


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_whitening_ignores_padding(batch, garbage, shift_mean):
    clean = whiten(fill(batch.advantages, batch.mask, 0.0), batch.mask, shift_mean=shift_mean)
    result = whiten(fill(batch.advantages, batch.mask, garbage), batch.mask, shift_mean=shift_mean)
    assert_close(result, clean)
    assert (result[~batch.mask] == 0).all()
    wide = whiten(widen(batch.advantages, 4, garbage), widen_mask(batch.mask, 4), shift_mean=shift_mean)
    assert_close(wide[:, : batch.width], clean)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert_close(whiten(batch.advantages[order], batch.mask[order], shift_mean=shift_mean), clean[order])


class TwoProcesses:
    """Stands in for `torch.distributed` with two threads: real processes would take seconds to start."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.total = torch.zeros(0)
        self.all_here = threading.Barrier(2, action=self.add_up, timeout=20)

    def add_up(self) -> None:
        self.total = self.parts[0] + self.parts[1]
        self.parts = []

    def all_reduce(self, x: Tensor) -> None:
        self.parts.append(x.clone())
        self.all_here.wait()
        x.copy_(self.total)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_over_all_processes(batch, shift_mean, monkeypatch):
    # Shares of unlike length and mean: whitening each by itself, or averaging their means, gives other numbers.
    x, mask = batch.advantages + torch.arange(7.0)[:, None], batch.mask
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", TwoProcesses().all_reduce)
    with ThreadPoolExecutor(2) as processes:
        shares = processes.map(lambda rows: whiten(x[rows], mask[rows], shift_mean), [slice(0, 2), slice(2, 7)])
    expected = reference.whiten(reference.ragged(x.tolist(), batch.lengths), shift_mean)
    assert_close(torch.cat(list(shares)), tensor(expected, batch.width), atol=1e-5, rtol=1e-5)


# Rewards of tokens


def test_token_rewards_worked_by_hand():
    scores = torch.tensor([2.0, -1.0, 7.0, 4.0])
    kl = torch.tensor([[0.5, -1.0, 2.0], [3.0, 50.0, 50.0], [50.0, 50.0, 50.0], [1.0, 2.0, 50.0]])
    mask = torch.tensor([[True] * 3, [True, False, False], [False] * 3, [True, True, False]])
    expected = torch.tensor([[-0.05, 0.1, 1.8], [-1.3, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.1, 3.8, 0.0]])
    assert_close(token_rewards(scores, 0.1 * kl, mask), expected)


@pytest.mark.parametrize("kl_coef", [0.0, 0.05, 2.0])
def test_token_rewards_equal_the_reference(batch, kl_coef):
    kl = reference.ragged(batch.rewards.tolist(), batch.lengths)
    expected = [reference.token_rewards(s, row, kl_coef) for s, row in zip(batch.scores.tolist(), kl, strict=True)]
    rewards = token_rewards(batch.scores, kl_coef * batch.rewards, batch.mask)
    assert rewards.dtype == torch.float32
    assert_close(rewards, tensor(expected, batch.width))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_token_rewards_ignore_padding(batch, garbage):
    clean = token_rewards(batch.scores, 0.1 * fill(batch.rewards, batch.mask, 0.0), batch.mask)
    kl = fill(batch.rewards, batch.mask, garbage)
    assert torch.equal(token_rewards(batch.scores, 0.1 * kl, batch.mask), clean)
    wide = token_rewards(batch.scores, 0.1 * widen(kl, 3, garbage), widen_mask(batch.mask, 3))
    assert torch.equal(wide, widen(clean, 3, 0.0))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.equal(token_rewards(batch.scores[order], 0.1 * kl[order], batch.mask[order]), clean[order])


def test_the_score_reaches_every_token_of_its_response_and_no_other(batch):
    nothing = torch.zeros_like(batch.rewards)
    rewards = token_rewards(batch.scores, 0.1 * nothing, batch.mask)
    advantages, _ = generalized_advantages(rewards, nothing, batch.mask, gamma=1.0, lam=1.0)
    assert_close(advantages, batch.scores[:, None] * batch.mask)

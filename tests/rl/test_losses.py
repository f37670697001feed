import math

import ppo_reference as reference
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lorarlhf.rl.losses import policy_loss, value_loss

GARBAGE = [0.0, -7.5, 200.0, -200.0, 1e15]  # exp(200) is infinite in float32, and zero times infinity is not a number
POLICY_FIELDS = ("logprobs", "old_logprobs", "advantages")
VALUE_FIELDS = ("values", "old_values", "rewards")  # any numbers do as returns: here those of the rewards
LOSSES = [
    pytest.param(policy_loss, POLICY_FIELDS, "cliprange", id="policy"),
    pytest.param(value_loss, VALUE_FIELDS, "cliprange_value", id="value"),
]


def each_token(function, batch, fields, clip: float) -> list[list]:
    """`function` of the reference on every real token."""
    columns = [reference.ragged(getattr(batch, name).tolist(), batch.lengths) for name in fields]
    return [[function(*token, clip) for token in zip(*rows, strict=True)] for rows in zip(*columns, strict=True)]


def tensor(rows: list[list], width: int, fill: float | bool = 0.0) -> Tensor:
    return torch.tensor(reference.padded(rows, width, fill))


# Worked by hand


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "slope"),
    [
        (1.0, 2.0, -2.0, False, -2.0),
        (1.0, -2.0, 2.0, False, 2.0),
        (1.5, 1.0, -1.2, True, 0.0),  # a good token, already more likely than the clip allows: no more to gain
        (1.5, -1.0, 1.5, False, 1.5),  # a bad one that became more likely: the full loss
        (0.5, 1.0, -0.5, False, -0.5),  # a good one that became less likely: the full loss
        (0.5, -1.0, 0.8, True, 0.0),  # a bad one, already less likely than the clip allows
        (1.1, 3.0, -3.3, False, -3.3),
        (0.9, -3.0, 2.7, False, 2.7),
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_policy_loss_worked_by_hand(ratio, advantage, loss, clipped, slope):
    logprobs = torch.tensor([[math.log(ratio) - 1.5]], requires_grad=True)
    losses, clips = policy_loss(
        logprobs, torch.tensor([[-1.5]]), torch.tensor([[advantage]]), torch.tensor([[True]]), cliprange=0.2
    )
    losses.sum().backward()
    assert_close(losses, torch.tensor([[loss]]))
    assert clips.tolist() == [[clipped]]
    assert_close(logprobs.grad, torch.tensor([[slope]]))


@pytest.mark.parametrize(
    ("value", "old_value", "target", "loss", "clipped", "slope"),
    [
        (2.0, 0.0, 1.0, 0.5, False, 1.0),  # overshot: moving back to 0.5 would err less
        (2.0, 0.0, 3.0, 3.125, True, 0.0),  # on its way, but further than allowed: 0.5 errs by 2.5
        (-2.0, 0.0, -3.0, 3.125, True, 0.0),
        (0.25, 0.0, 1.25, 0.5, False, -1.0),  # within the range
        (1.0, 1.0, 1.0, 0.0, False, 0.0),
        (2.0, 1.75, 0.0, 2.0, False, 2.0),
    ],
)
def test_value_loss_worked_by_hand(value, old_value, target, loss, clipped, slope):
    values = torch.tensor([[value]], requires_grad=True)
    losses, clips = value_loss(
        values, torch.tensor([[old_value]]), torch.tensor([[target]]), torch.tensor([[True]]), cliprange_value=0.5
    )
    losses.sum().backward()
    assert_close(losses, torch.tensor([[loss]]))
    assert clips.tolist() == [[clipped]]
    assert_close(values.grad, torch.tensor([[slope]]))


# Against the reference


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.4])
@pytest.mark.parametrize(
    ("loss", "fields", "slow", "slow_slope"),
    [
        pytest.param(policy_loss, POLICY_FIELDS, reference.policy_loss, reference.policy_loss_slope, id="policy"),
        pytest.param(value_loss, VALUE_FIELDS, reference.value_loss, reference.value_loss_slope, id="value"),
    ],
)
def test_losses_clips_and_gradients_equal_the_reference(batch, loss, fields, slow, slow_slope, clip):
    inputs = [getattr(batch, name).clone() for name in fields]
    inputs[0].requires_grad_()
    losses, clipped = loss(*inputs, batch.mask, clip)
    (gradient,) = torch.autograd.grad(losses.sum(), inputs[0])

    expected = each_token(slow, batch, fields, clip)
    assert losses.dtype == torch.float32
    assert clipped.dtype == torch.bool
    assert_close(losses, tensor([[x for x, _ in row] for row in expected], batch.width), atol=1e-5, rtol=1e-5)
    assert torch.equal(clipped, tensor([[c for _, c in row] for row in expected], batch.width, False))
    assert clipped.any()
    assert not clipped[batch.mask].all()

    slopes = tensor(each_token(slow_slope, batch, fields, clip), batch.width)
    assert_close(gradient, slopes, atol=1e-5, rtol=1e-5)
    assert (gradient[clipped] == 0).all()


def test_equal_logprobs_give_ratio_one_exactly(batch):
    logprobs = batch.old_logprobs.clone().requires_grad_()
    losses, clipped = policy_loss(logprobs, batch.old_logprobs, batch.advantages, batch.mask, cliprange=0.2)
    losses.sum().backward()
    expected = torch.where(batch.mask, -batch.advantages, 0.0)
    assert torch.equal(losses, expected)
    assert torch.equal(logprobs.grad, expected)  # the plain policy gradient
    assert not clipped.any()


def test_equal_values_give_half_the_squared_error_exactly(batch):
    losses, clipped = value_loss(batch.values, batch.values, batch.rewards, batch.mask, cliprange_value=0.2)
    assert torch.equal(losses, torch.where(batch.mask, 0.5 * (batch.values - batch.rewards) ** 2, 0.0))
    assert not clipped.any()


def test_values_within_the_range_do_not_count_as_clipped():
    """Nor by rounding: old + (new - old) need not be new."""
    generator = torch.Generator().manual_seed(0)
    values, old_values, targets = torch.randn(3, 50, 20, generator=generator)
    mask = torch.ones(50, 20, dtype=torch.bool)
    losses, clipped = value_loss(values, old_values, targets, mask, cliprange_value=20.0)
    assert not clipped.any()
    assert torch.equal(losses, 0.5 * (values - targets) ** 2)


# Padding, order, micro-batches


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(("loss", "fields", "clip"), LOSSES)
def test_padding_changes_neither_losses_nor_gradients(batch, loss, fields, clip, garbage):
    def run(width: int, fills: tuple[float, float, float]) -> tuple[Tensor, Tensor, Tensor]:
        extra = width - batch.width
        mask = torch.nn.functional.pad(batch.mask, (0, extra))
        inputs = [
            torch.where(mask, torch.nn.functional.pad(getattr(batch, name), (0, extra)), value)
            for name, value in zip(fields, fills, strict=True)
        ]
        inputs[0].requires_grad_()
        losses, clipped = loss(*inputs, mask, **{clip: 0.2})
        (gradient,) = torch.autograd.grad(losses.sum(), inputs[0])
        assert (losses[~mask] == 0).all()
        assert (gradient[~mask] == 0).all()
        assert not clipped[~mask].any()
        return losses[mask], clipped[mask], gradient[mask]

    plain = run(batch.width, (0.0, 0.0, 0.0))
    for other in (run(batch.width, (garbage, -garbage, -garbage)), run(batch.width + 3, (garbage, 0.0, garbage))):
        for result, expected in zip(other, plain, strict=True):
            assert torch.equal(result, expected)


@pytest.mark.parametrize(("loss", "fields", "clip"), LOSSES)
def test_the_order_of_rows_does_not_matter(batch, loss, fields, clip):
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    inputs = [getattr(batch, name) for name in fields]
    plain = loss(*inputs, batch.mask, **{clip: 0.2})
    shuffled = loss(*[x[order] for x in inputs], batch.mask[order], **{clip: 0.2})
    for before, moved in zip(plain, shuffled, strict=True):
        assert torch.equal(moved, before[order])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("loss", "fields", "clip"), LOSSES)
def test_micro_batches_of_any_size_add_up_to_the_minibatch(batch, loss, fields, clip, size):
    inputs = [getattr(batch, name).clone() for name in fields]
    inputs[0].requires_grad_()
    tokens = batch.mask.sum()
    whole = loss(*inputs, batch.mask, **{clip: 0.2})[0].sum() / tokens
    (gradient,) = torch.autograd.grad(whole, inputs[0])

    total = 0.0
    for start in range(0, len(batch.lengths), size):
        rows = slice(start, start + size)
        width = max(batch.lengths[rows])  # a micro-batch is padded only to its own longest response
        parts = [x[rows, :width] for x in inputs]
        part = loss(*parts, batch.mask[rows, :width], **{clip: 0.2})[0].sum() / tokens
        part.backward()
        total += part.item()
    assert_close(total, whole.item(), atol=1e-6, rtol=1e-5)
    assert_close(inputs[0].grad, gradient)

"""Random batches of responses of every length that matters, with garbage where they are padded."""

import functools
from typing import NamedTuple

import pytest
import torch
from loops import make_loop
from torch import Tensor


class Batch(NamedTuple):
    lengths: list[int]
    mask: Tensor  # bool [B, R]
    rewards: Tensor  # all others float32 [B, R], `scores` [B]
    values: Tensor
    old_values: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    scores: Tensor

    @property
    def width(self) -> int:
        return self.mask.shape[1]


@pytest.fixture(params=[0, 1, 2])
def batch(request) -> Batch:
    """Seven responses of up to six tokens: full, empty, one token, and others."""
    generator = torch.Generator().manual_seed(request.param)
    width = 6
    lengths = [width, 0, 1, width - 1, 3, 2, width]
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]

    def noise(scale: float = 1.0, shift: float = 0.0) -> Tensor:
        real = scale * torch.randn(mask.shape, generator=generator) + shift
        return torch.where(mask, real, 1e4 * torch.randn(mask.shape, generator=generator))

    old_logprobs = noise(0.5, -2.0)
    return Batch(
        lengths=lengths,
        mask=mask,
        rewards=noise(),
        values=noise(),
        old_values=noise(),
        logprobs=torch.where(mask, old_logprobs + noise(0.3), noise()),
        old_logprobs=old_logprobs,
        advantages=noise(2.0),
        scores=torch.randn(len(lengths), generator=generator),
    )


@pytest.fixture
def loop(tmp_path):
    """`loop(*sets, reward=..., scale=...)`: see `loops.make_loop`."""
    return functools.partial(make_loop, tmp_path)

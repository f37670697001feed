"""Drawing tokens from numbers that are known beforehand."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lorarlhf.backbone.logprobs import Softmax

BLOCK = 256  # tokens


def uniform_table(rows: int, length: int, *key: int | str) -> Tensor:
    """[rows, length] numbers in [0, 1), float64, on the CPU: one for each token that may be drawn.

    They depend on `key` (a seed, an iteration, what they are for) and on nothing else, and each response has a row of
    its own. So what is sampled does not change with how many responses are decoded at a time, with halving when memory
    runs out, with the number of processes or with the device; and a run that goes on has no random state to restore.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(rows, length, generator=generator, dtype=torch.float64)


def draw(softmax: Softmax, at: Tensor) -> Tensor:
    """[n] one token a row, by inverting the cumulative distribution: first to a block of tokens, then in it.

    One random number a row and one pass, where `torch.multinomial` draws a number for each token.

    Args:
        at: [n] in [0, 1), float64.
    """
    vocabulary = softmax.exp.shape[1]
    whole = vocabulary - vocabulary % BLOCK
    blocks = softmax.exp[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    blocks = torch.cat([blocks, softmax.exp[:, whole:].sum(-1, keepdim=True)], 1)
    block, at = _invert(blocks, at.unsqueeze(1))
    tokens = block * BLOCK + torch.arange(BLOCK, device=softmax.exp.device)
    inside = softmax.exp.gather(1, tokens.clamp(max=vocabulary - 1)).where(tokens < vocabulary, 0.0)
    place, _ = _invert(inside, at)
    return (block * BLOCK + place).squeeze(1)


def _invert(weights: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The first place whose cumulative weight is beyond the share `at` of all weight, and how far into it `at` falls.

    Args:
        weights: [n, k], not negative, not all 0.
        at: [n, 1] in [0, 1), float64.

    Returns:
        place [n, 1], never one of weight 0, and share [n, 1] in [0, 1) of that place's weight.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = at * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)
    place = torch.minimum(place, (weights > 0).cumsum(-1).argmax(-1, keepdim=True))  # rounding: the last with weight
    weight = weights.gather(1, place).double()
    start = cumulative.gather(1, place) - weight
    return place, ((target - start) / weight).clamp(0, 1 - 2**-40)

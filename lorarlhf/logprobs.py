"""Log-probabilities and entropy from hidden states, in chunks: no [tokens, vocabulary] tensor is ever whole."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**26


def rows_a_chunk(vocabulary: int) -> int:
    """Tokens whose float32 scores take 64 MiB; a chunk in training needs about ten times that."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def chunked_logprobs(
    hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], temperature: float, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of the distribution it was drawn from.

    The distribution is softmax(logits / temperature), reduced in float32. Backward computes each chunk's logits again,
    so that memory grows with `chunk` and not with the number of tokens.

    Args:
        hidden: [N, H] hidden state from which each token is predicted.
        targets: [N] token ids.
        logits_of: the language-model head, [n, H] -> [n, V].

    Returns:
        logprobs [N] and entropy [N], both float32.
    """

    def one_chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(logits_of(hidden).float() / temperature, dim=-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(1, targets.unsqueeze(1)).squeeze(1), entropy

    compute = one_chunk
    if torch.is_grad_enabled():
        compute = functools.partial(checkpoint, one_chunk, use_reentrant=False)
    pieces = [compute(h, t) for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)]
    logprobs, entropy = (torch.cat(column) for column in zip(*pieces, strict=True))
    return logprobs, entropy

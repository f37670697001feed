"""Log-probabilities and entropy from hidden states, in chunks: no [tokens, vocabulary] tensor is ever whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2**26
Head = Callable[[Tensor], Tensor]


def rows_a_chunk(vocabulary: int) -> int:
    """Tokens whose float32 scores take 64 MiB; a chunk in training needs about five times that."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def chunked_logprobs(
    hidden: Tensor,
    targets: Tensor,
    logits_of: Head,
    temperature: float,
    chunk: int = 1024,
    entropy_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of the distribution it was drawn from.

    The distribution is softmax(logits / temperature), reduced in float32. The head is frozen and rows do not mix, so
    forward already knows each row's gradient with respect to its hidden state: it keeps that [N, H] tensor, and
    backward only scales it. Nothing of the vocabulary's size outlives its chunk.

    Args:
        hidden: [N, H] hidden state from which each token is predicted.
        targets: [N] token ids.
        logits_of: the language-model head, [n, H] -> [n, V].
        chunk: rows at a time.
        entropy_grad: whether the entropy will be differentiated too, which costs another product with the head.

    Returns:
        logprobs [N] and entropy [N], both float32.
    """
    if torch.is_grad_enabled() and hidden.requires_grad:
        return _ChunkedLogprobs.apply(hidden, targets, logits_of, temperature, chunk, entropy_grad)
    chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return _stack([_scores(logits_of(h), t, temperature)[:2] for h, t in chunks])


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Head, temperature: float, chunk: int, entropy_grad: bool
    ) -> tuple[Tensor, Tensor]:
        results, slopes = [], []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            h = h.detach().requires_grad_()
            with torch.enable_grad():
                logits = logits_of(h)
            logprobs, entropy, log_p = _scores(logits.detach(), t, temperature)
            results.append((logprobs, entropy))
            p = log_p.exp()
            slopes.append([_slope(logits, h, _one_hot_less(p, t), temperature)])
            if entropy_grad:  # d entropy / d logits = -p (log p + entropy)
                slopes[-1].append(_slope(logits, h, -p * (log_p + entropy.unsqueeze(1)), temperature))
        ctx.save_for_backward(*(torch.cat(column) for column in zip(*slopes, strict=True)))
        outputs = _stack(results)
        if not entropy_grad:
            ctx.mark_non_differentiable(outputs[1])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        terms = [grad.unsqueeze(1) * slope for grad, slope in zip(grads, ctx.saved_tensors, strict=False)]
        return (sum(terms[1:], terms[0]).to(ctx.saved_tensors[0].dtype), None, None, None, None, None)


def _scores(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the targets [n], entropy [n], and log-probability of every token [n, V]."""
    log_p = torch.log_softmax(logits.float() / temperature if temperature != 1 else logits.float(), dim=-1)
    entropy = -torch.linalg.vecdot(log_p.exp(), log_p)
    return log_p.gather(1, targets.unsqueeze(1)).squeeze(1), entropy, log_p


def _one_hot_less(p: Tensor, targets: Tensor) -> Tensor:
    """d log p(target) / d logits = one_hot(target) - p."""
    slope = -p
    slope[torch.arange(len(targets), device=targets.device), targets] += 1
    return slope


def _slope(logits: Tensor, hidden: Tensor, d_logits: Tensor, temperature: float) -> Tensor:
    """[n, H] gradient of a row's scalar, given that with respect to its logits / temperature."""
    grad = (d_logits / temperature if temperature != 1 else d_logits).to(logits.dtype)
    (slope,) = torch.autograd.grad(logits, hidden, grad, retain_graph=True)
    return slope


def _stack(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    logprobs, entropy = (torch.cat(column) for column in zip(*pieces, strict=True))
    return logprobs, entropy

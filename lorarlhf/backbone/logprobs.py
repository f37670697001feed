"""Log-probabilities and entropy from hidden states, in chunks: no [tokens, vocabulary] tensor is ever whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2**26
CPU_CHUNK_BYTES = 2**24  # a chunk should stay in the CPU's cache: half the time, measured
Head = Callable[[Tensor], Tensor]


class Predictions(NamedTuple):
    """What the states before [N] tokens say of them.

    Attributes:
        logprobs: [N] float32, of each token.
        entropy: [N] float32, of the distribution it was drawn from; 0 where it was not asked for.
        is_likeliest: [N] bool, whether no other token was likelier; carries no gradient.
    """

    logprobs: Tensor
    entropy: Tensor
    is_likeliest: Tensor


def rows_a_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens whose float32 scores take so many bytes; a chunk needs about three times that."""
    return max(1, (CPU_CHUNK_BYTES if device.type == "cpu" else CHUNK_BYTES) // (4 * vocabulary))


def chunked_logprobs(
    hidden: Tensor,
    targets: Tensor,
    logits_of: Head,
    temperature: float,
    chunk: int = 1024,
    with_entropy: bool = True,
) -> Predictions:
    """Log-probability of each target, entropy of the distribution it was drawn from, and whether it was the likeliest.

    The distribution is softmax(logits / temperature), reduced in float32. The head is frozen and rows do not mix, so
    forward already knows each row's gradient with respect to its hidden state: it keeps that [N, H] tensor, and
    backward only scales it. Nothing of the vocabulary's size outlives its chunk.

    Args:
        hidden: [N, H] hidden state from which each token is predicted.
        targets: [N] token ids.
        logits_of: the language-model head, [n, H] -> [n, V].
        chunk: rows at a time.
        with_entropy: off saves a quarter of the time, half again in training: another product with the head.
    """
    if torch.is_grad_enabled() and hidden.requires_grad:
        return Predictions(*_ChunkedLogprobs.apply(hidden, targets, logits_of, temperature, chunk, with_entropy))
    results: list[Predictions] = []
    workspace = None
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        softmax = Softmax(logits_of(h), temperature, workspace)
        workspace = softmax.workspace
        results.append(_results(softmax, t, with_entropy))
    return _stack(results)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Head, temperature: float, chunk: int, with_entropy: bool
    ) -> Predictions:
        results: list[Predictions] = []
        slopes: list[list[Tensor]] = []
        workspace = None
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            # A graph of this chunk alone, walked at once: what it holds of the vocabulary's size goes with the chunk.
            h = h.detach().requires_grad_()
            with torch.enable_grad():
                logits = logits_of(h)
            softmax = Softmax(logits.detach(), temperature, workspace)
            workspace = softmax.workspace
            results.append(_results(softmax, t, with_entropy))
            scale = -1 / (temperature * softmax.total)
            slopes.append([])
            if with_entropy:  # d entropy / d logits = -p (log p + entropy)
                surprise = softmax.shifted + (results[-1].entropy - softmax.total.log()).unsqueeze(1)
                slopes[-1].append(_product(logits, h, surprise.mul_(softmax.exp), scale))
            # d log p(target) / d logits = one_hot(target) - p; p x total is `exp`, which is not needed again.
            softmax.exp[torch.arange(len(t), device=t.device), t] -= softmax.total
            slopes[-1].insert(0, _product(logits, h, softmax.exp, scale))
        ctx.save_for_backward(*(torch.cat(column) for column in zip(*slopes, strict=True)))
        outputs = _stack(results)
        ctx.mark_non_differentiable(outputs.is_likeliest, *([] if with_entropy else [outputs.entropy]))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        terms = [grad.unsqueeze(1) * slope for grad, slope in zip(grads, ctx.saved_tensors, strict=False)]
        return (sum(terms[1:], terms[0]).to(ctx.saved_tensors[0].dtype), None, None, None, None, None)


class Softmax:
    """softmax(logits / temperature) of [n, V] in float32, with as few passes over [n, V] as it takes.

    Args:
        workspace: that of an earlier one with at least as many rows, which is then of no use: on a CPU, fresh memory
            costs more than what is computed in it.

    Attributes:
        shifted: [n, V] logits / temperature less their maximum.
        exp: [n, V] exp(shifted); p = exp / total.
        total: [n].
    """

    def __init__(self, logits: Tensor, temperature: float, workspace: Tensor | None = None) -> None:
        if workspace is None:
            workspace = torch.empty(2, *logits.shape, device=logits.device)
        self.workspace = workspace
        self.shifted = workspace[0, : len(logits)].copy_(logits)
        if temperature != 1:
            self.shifted.div_(temperature)
        self.shifted.sub_(self.shifted.amax(-1, keepdim=True))
        self.exp = torch.exp(self.shifted, out=workspace[1, : len(logits)])
        self.total = self.exp.sum(-1)

    def logprobs(self, targets: Tensor) -> Tensor:
        """[n] log-probability of one token a row."""
        return self.shifted.gather(1, targets.unsqueeze(1)).squeeze(1) - self.total.log()

    def is_likeliest(self, targets: Tensor) -> Tensor:
        """[n] whether no other token has a greater probability."""
        return self.shifted.gather(1, targets.unsqueeze(1)).squeeze(1) == 0

    def entropy(self) -> Tensor:
        """[n] log total - E[shifted]."""
        with _as_stored(self.exp.device.type):
            products: Tensor = torch.linalg.vecdot(self.exp, self.shifted)
        return self.total.log() - products / self.total


def _as_stored(device: str) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, under which a sampler asks: it would multiply in bfloat16. The planner's meta knows none."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def _results(softmax: Softmax, targets: Tensor, with_entropy: bool) -> Predictions:
    logprobs = softmax.logprobs(targets)
    entropy = softmax.entropy() if with_entropy else torch.zeros_like(logprobs)
    return Predictions(logprobs, entropy, softmax.is_likeliest(targets))


def _product(logits: Tensor, hidden: Tensor, d_logits: Tensor, scale: Tensor) -> Tensor:
    """[n, H] gradient with respect to `hidden`, given that with respect to `logits`, each row times its scale."""
    (grad,) = torch.autograd.grad(logits, hidden, d_logits.to(logits.dtype), retain_graph=True)
    return grad * scale.unsqueeze(1)


def _stack(pieces: list[Predictions]) -> Predictions:
    return Predictions(*(torch.cat(column) for column in zip(*pieces, strict=True)))

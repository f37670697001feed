"""What is run on a shadow: each does what its stage does, and lets go of the same things at the same time.

Every batch is as long as the recipe allows. Lengths are in tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer import utils as trl_utils

from lorarlhf.backbone.logprobs import Softmax
from lorarlhf.generation.decode import Decoder, GrowingDecoder, StaticDecoder, capture_fault
from lorarlhf.planner.shadow import Allocations, FullBatch, ShadowBackbone
from lorarlhf.recipe.sections import Role
from lorarlhf.training.arguments import has_router_loss


@torch.no_grad()
def decode(shadow: ShadowBackbone, allocations: Allocations, rows: int, prompt: int, response: int) -> None:
    """The prompts, a group at a time, and the last token of the responses."""
    shadow.eval()

    def prompts(width: int) -> list[Sequence[int]]:  # all different: prompts that are the same are computed once
        return [[row] * width for row in range(rows)]

    static = shadow.target.type == "cuda" and capture_fault(shadow, prompt + response) is None
    with shadow.role("policy"), shadow.on_meta():
        decoder: Decoder = (StaticDecoder if static else GrowingDecoder)(shadow, prompts(prompt), response)
        logits = decoder.start()
        workspace = _softmax(logits, None)
        if not static:  # come to the last step at once
            peak = _with_cache(allocations.peak, decoder)
            decoder = GrowingDecoder(shadow, prompts(prompt + response - 2), 2)
            logits = decoder.start()
            allocations.peak = allocations.now.copy()
        logits = decoder.step(torch.empty(rows, dtype=torch.long, device="meta"))
        _softmax(logits, workspace)
    allocations.peak = _with_cache(allocations.peak, decoder)
    if not static:
        allocations.peak = max(peak, allocations.peak, key=Counter.total)


def _softmax(logits: Tensor, workspace: Tensor | None) -> Tensor:
    softmax = Softmax(logits, 1.0, workspace)
    softmax.logprobs(torch.empty(len(logits), dtype=torch.long, device="meta"))
    softmax.entropy()
    return softmax.workspace


def _with_cache(peak: Counter[str], decoder: Any) -> Counter[str]:
    """Part of the activations, called by its name."""
    cache = sum(tensor.nbytes for layer in decoder.cache.layers for tensor in (layer.keys, layer.values))
    return peak + Counter({"kv cache": cache}) - Counter({"activations": cache})


@torch.no_grad()
def score(shadow: ShadowBackbone, allocations: Allocations, rows: int, prompt: int, response: int) -> None:
    """Log-probabilities; reward model and critic take less."""
    shadow.eval()
    shadow.logprobs("policy", FullBatch(rows, prompt, response))


def policy_step(
    shadow: ShadowBackbone, allocations: Allocations, rows: int, prompt: int, response: int, again: bool, entropy: bool
) -> None:
    """One micro-batch; `again` if another one came before it."""
    shadow.train()
    _keep_gradients(shadow, "policy", again, allocations)
    logprobs, entropies = shadow.logprobs("policy", FullBatch(rows, prompt, response), 1.0, entropy)
    _backward(logprobs.sum() + entropies.sum() if entropy else logprobs.sum(), shadow, "policy", allocations)


def critic_step(
    shadow: ShadowBackbone, allocations: Allocations, rows: int, prompt: int, response: int, again: bool
) -> None:
    """As `policy_step`."""
    shadow.train()
    _keep_gradients(shadow, "critic", again, allocations)
    values = shadow.values(FullBatch(rows, prompt, response))
    _backward(values.sum(), shadow, "critic", allocations)


def sft_step(shadow: ShadowBackbone, allocations: Allocations, rows: int, length: int, again: bool) -> None:
    """One pass of fine-tuning, with the whole row labelled."""
    shadow.train()
    _keep_gradients(shadow, "policy", again, allocations)
    _backward(_sft_loss(shadow, rows, length), shadow, "policy", allocations)


@torch.no_grad()
def sft_loss(shadow: ShadowBackbone, allocations: Allocations, rows: int, length: int) -> None:
    """One pass of its evaluation."""
    shadow.eval()
    _sft_loss(shadow, rows, length)


def _sft_loss(shadow: ShadowBackbone, rows: int, length: int) -> Tensor:
    if not has_router_loss(shadow.causal_lm.config):
        return -shadow.logprobs("policy", FullBatch(rows, 1, length - 1), with_entropy=False)[0].sum()
    tokens = torch.empty(rows, length, dtype=torch.long, device="meta")
    with shadow.role("policy"):
        if not hasattr(trl_utils, "add_fused_lm_head"):  # TRL before 1.16 makes all logits at once
            loss: Tensor = shadow.causal_lm(
                input_ids=tokens, attention_mask=tokens, labels=tokens, use_cache=False
            ).loss
            return loss
        hidden = shadow.trunk(input_ids=tokens, attention_mask=tokens, use_cache=False).last_hidden_state
    hidden = hidden[:, :-1]
    vocabulary = shadow.causal_lm.get_output_embeddings().out_features
    losses: Tensor = _TrlHead.apply(hidden.reshape(-1, hidden.shape[-1]), vocabulary, shadow.target.type)
    return losses.sum()


class _TrlHead(torch.autograd.Function):
    """TRL's fused head: log-probabilities by tiles of 4096 tokens and 32768 words, which are folded as they come."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vocabulary: int, target: str) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.sizes = vocabulary, target
        _TrlHead._tile(hidden, vocabulary, target, 3)
        return hidden.new_empty(len(hidden))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden, dtype=torch.float32)
        vocabulary, target = ctx.sizes
        _TrlHead._tile(hidden, vocabulary, target, 7)
        return d_hidden.to(hidden.dtype), None, None

    @staticmethod
    def _tile(hidden: Tensor, vocabulary: int, target: str, copies: int) -> None:
        width = 32768 if target == "cuda" else min(vocabulary, 32768)  # what a CPU does not touch takes no memory
        tile = hidden.new_empty(min(len(hidden), 4096), width)
        # On a GPU one kernel folds a tile; elsewhere its scores, their exponentials and their gradient are tensors.
        [tile.to(torch.float32, copy=True) for _ in range(copies if target == "cpu" else 0)]


def reward_step(shadow: ShadowBackbone, allocations: Allocations, rows: int, length: int, again: bool) -> None:
    """One pass of the reward model's trainer, over `rows` sequences."""
    shadow.train()
    _keep_gradients(shadow, "reward", again, allocations)
    _backward(shadow.scores(FullBatch(rows, length, 0)).sum(), shadow, "reward", allocations)


@torch.no_grad()
def reward_scores(shadow: ShadowBackbone, allocations: Allocations, rows: int, length: int) -> None:
    """One batch of the reward model's evaluation."""
    shadow.eval()
    shadow.scores(FullBatch(rows, length, 0))


def _backward(loss: Tensor, shadow: ShadowBackbone, role: Role, allocations: Allocations) -> None:
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p: allocations.relabel(p.grad, "gradients"))
        for parameter in shadow.role_parameters(role)
        if parameter.grad is None
    ]
    torch.autograd.backward(loss)
    for handle in handles:
        handle.remove()


def _keep_gradients(shadow: ShadowBackbone, role: Role, again: bool, allocations: Allocations) -> None:
    """Where one micro-batch follows another, gradients are there already."""
    for parameter in shadow.role_parameters(role) if again else ():
        parameter.grad = torch.empty_like(parameter)
        allocations.relabel(parameter.grad, "gradients")

"""Sample responses from the policy, recording the log-probability of each token as it is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.grouping import grouped
from lorarlhf.backbone.logprobs import Softmax
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.generation.decode import make_decoder
from lorarlhf.generation.draw import draw

OnToken = Callable[[int, int], None]  # which prompt, and the next token of its response


@dataclass(frozen=True)
class Rollout:
    """Prompts and sampled responses.

    Attributes:
        sequences: B prompts and responses, in the order of the prompts given.
        logprobs, entropy: [B, R] log-probability of each token when it was drawn, and entropy of what it was drawn
            from, 0 at padding.
        finished: [B] True where the response ended itself; False where it was cut at the limit.
    """

    sequences: TokenBatch
    logprobs: Tensor
    entropy: Tensor
    finished: Tensor

    def to(self, device: torch.device) -> Rollout:
        """The same on another device."""
        return Rollout(
            self.sequences.to(device), self.logprobs.to(device), self.entropy.to(device), self.finished.to(device)
        )


def response_lengths(tokens: Tensor, stop_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where each response ends: with its first stop token, which counts, or at the limit.

    Args:
        tokens: [B, R] sampled ids; what follows the first stop token does not matter.

    Returns:
        lengths [B] and finished [B], False where there is no stop token.
    """
    is_stop = torch.isin(tokens, torch.tensor(list(stop_ids), device=tokens.device, dtype=tokens.dtype))
    finished = is_stop.any(1)
    first = is_stop.long().argmax(1) + 1
    return torch.where(finished, first, tokens.shape[1]), finished


class ResponseSampler:
    """Samples responses, fewer at a time once memory has run out.

    Args:
        phase: what to call it in a message.
        tokens: decoded at a time to begin with; all at once unless it says less.
    """

    def __init__(
        self,
        backbone: SharedBackbone,
        response_length: int,
        temperature: float,
        phase: str = "rollout",
        tokens: int = sys.maxsize,
    ) -> None:
        self.backbone = backbone
        self.response_length = response_length
        self.temperature = temperature
        self.budget = TokenBudget(phase, tokens)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: Tensor,
        role: str = "policy",
        on_token: OnToken | None = None,
    ) -> Rollout:
        """One response a prompt; see `sample_responses`."""
        self.backbone.eval()
        longest = max(map(len, prompts)) + self.response_length
        return self.budget.run(
            lambda tokens: sample_responses(self.backbone, prompts, uniforms, self.temperature, role, tokens, on_token),
            most=len(prompts) * longest,
            least=longest,
        )


def sample_responses(
    backbone: SharedBackbone,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    temperature: float,
    role: str = "policy",
    token_budget: int | None = None,
    on_token: OnToken | None = None,
) -> Rollout:
    """Sample one response a prompt from softmax(logits / temperature), nothing filtered.

    Args:
        prompts: B lists of token ids, none of them empty.
        uniforms: [B, limit] the numbers that decide each response, a row each (`uniform_table`); a response has at most
            `limit` tokens. There is no other source of randomness.
        token_budget: most tokens (prompt and full response, padded) decoded at a time; None for all at once.
        on_token: told each token as it is drawn, which waits for the GPU at each step: for people who read along.
    """
    limit = uniforms.shape[1]
    uniforms = uniforms.to(backbone.device)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: list[list[int]] = [[] for _ in prompts]
    per_token: list[Tensor] = [torch.empty(0, 2) for _ in prompts]
    finished = torch.zeros(len(prompts), dtype=torch.bool)
    for rows in _decode_batches(order, prompts, limit, token_budget):
        tokens, logprobs_and_entropy = _decode(
            backbone, role, [prompts[i] for i in rows], uniforms[rows], temperature, _of_batch(on_token, rows)
        )
        lengths, ended = response_lengths(tokens, backbone.stop_ids)
        for k, i in enumerate(rows):
            responses[i] = tokens[k, : lengths[k]].tolist()
            per_token[i] = logprobs_and_entropy[k, : lengths[k]]
            finished[i] = ended[k]
    logprobs, entropy = torch.nn.utils.rnn.pad_sequence(per_token, batch_first=True).to(backbone.device).unbind(-1)
    return Rollout(
        sequences=grouped(backbone, TokenBatch.from_lists(prompts, responses)).to(backbone.device),
        logprobs=logprobs,
        entropy=entropy,
        finished=finished.to(backbone.device),
    )


def _decode_batches(
    order: list[int], prompts: Sequence[Sequence[int]], response_length: int, token_budget: int | None
) -> list[list[int]]:
    """Rows of similar prompt length together, shortest first, each batch within the budget (or one row)."""
    batches: list[list[int]] = []
    for i in order:
        width = len(prompts[i]) + response_length
        if not batches or (token_budget is not None and (len(batches[-1]) + 1) * width > token_budget):
            batches.append([])
        batches[-1].append(i)
    return batches


def _of_batch(on_token: OnToken | None, rows: list[int]) -> Callable[[Tensor, Tensor], None] | None:
    """The same, told the tokens of a step by their rows in a batch, which are these of the prompts."""
    if on_token is None:
        return None

    def tell(active: Tensor, drawn: Tensor) -> None:
        for row, token in zip(active.tolist(), drawn.tolist(), strict=True):
            on_token(rows[row], token)

    return tell


@torch.no_grad()
def _decode(
    backbone: SharedBackbone,
    role: str,
    prompts: list[Sequence[int]],
    uniforms: Tensor,
    temperature: float,
    on_tokens: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token with a key-value cache; rows that have ended leave the batch.

    A row keeps its numbers when others leave: what it draws does not depend on them.

    Args:
        on_tokens: told at each step which rows went on [n], and with which tokens [n].

    Returns:
        tokens [B, R], and [B, R, 2] their log-probability and the entropy they were drawn with; after a row's stop
        token, the stop token and 0.
    """
    device, (n, response_length) = backbone.device, uniforms.shape
    stop_ids = torch.tensor(backbone.stop_ids, device=device)
    after_end = int(stop_ids[0]) if len(stop_ids) else 0
    tokens = torch.full((n, response_length), after_end, device=device)
    logprobs_and_entropy = torch.zeros(n, response_length, 2, device=device)
    active = torch.arange(n, device=device)
    decoder = make_decoder(backbone, prompts, response_length)
    workspace = None
    with backbone.role(role), backbone.autocast():
        logits = decoder.start()
        for step in range(response_length):
            softmax = Softmax(logits, temperature, workspace)
            workspace = softmax.workspace
            drawn = draw(softmax, uniforms[active, step])
            tokens[active, step] = drawn
            logprobs_and_entropy[active, step] = torch.stack([softmax.logprobs(drawn), softmax.entropy()], 1)
            if on_tokens:
                on_tokens(active, drawn)
            if step + 1 == response_length:
                break
            going_on = ~torch.isin(drawn, stop_ids)
            if not going_on.all():
                if not going_on.any():
                    break
                kept = torch.nonzero(going_on).squeeze(1)
                decoder.keep(kept)
                active, drawn = active[kept], drawn[kept]
            logits = decoder.step(drawn)
    return tokens, logprobs_and_entropy


def response_texts(backbone: SharedBackbone, rollout: Rollout) -> list[str]:
    """What a person reads of each response: special tokens left out."""
    return backbone.tokenizer.batch_decode(rollout.sequences.responses(), skip_special_tokens=True)

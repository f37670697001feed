"""How much is computed at a time."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.errors import UserError
from lorarlhf.memory import free_cached_memory

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
FORWARD_TOKENS = 16_384  # padded tokens a forward pass without gradients, where no recipe says how many


class TokenBudget:
    """Tokens that one phase computes at a time, halved for good whenever the device has no memory left.

    Args:
        phase: what to call it in a message.
        tokens: what to begin with.
    """

    def __init__(self, phase: str, tokens: int) -> None:
        self.phase = phase
        self.tokens = tokens

    def run(self, attempt: Callable[[int], Result], most: int, least: int) -> Result:
        """`attempt(tokens)`, from the start again with half the tokens as long as memory runs out.

        Args:
            attempt: must leave nothing behind that a second attempt would trip over.
            most: tokens of all there is to compute.
            least: tokens of the longest single sequence.

        Raises:
            UserError: not even one sequence fits.
        """
        tokens = min(self.tokens, most)
        while True:
            try:
                return attempt(tokens)
            except torch.OutOfMemoryError as error:
                if tokens <= least:
                    raise UserError(
                        f"{self.phase}: out of memory with a single sequence of {least} tokens; lower "
                        "ppo.response_length or data.max_prompt_length, set ppo.gradient_checkpointing, or take a "
                        "smaller model (see `lorarlhf plan`)"
                    ) from error
            gc.collect()
            free_cached_memory()
            self.tokens = tokens = max(least, tokens // 2)
            logger.warning("%s: out of memory; going on with %d tokens at a time", self.phase, tokens)


@torch.no_grad()
def in_micro_batches(
    sequences: TokenBatch,
    budget: TokenBudget,
    compute: Callable[[TokenBatch, Tensor], tuple[Tensor, ...]],
    widths: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Results of a forward pass over groups of rows, put together.

    Args:
        compute: given some of the rows and their indices, a tensor [rows, w, ...] for each of `widths`, w at most that.

    Returns:
        a tensor [B, width, ...] for each of `widths`, 0 where nothing was computed.
    """

    def attempt(tokens: int) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for rows in sequences.micro_batches(tokens):
            pieces = compute(sequences.select(rows), rows)
            for piece, width in zip(pieces, widths, strict=True) if not results else ():
                results.append(piece.new_zeros(len(sequences), width, *piece.shape[2:]))
            for result, piece in zip(results, pieces, strict=True):
                result[rows, : piece.shape[1]] = piece
        return tuple(results)

    return budget.run(attempt, most=sequences.tokens.numel(), least=int(sequences.lengths.max()))

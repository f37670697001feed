"""How much is computed at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.errors import UserError, is_out_of_memory
from lorarlhf.memory import free_unused_memory

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SUCCESSES_BEFORE_MORE = 8  # with a budget that was lowered
PPO_REMEDY = (
    "lower ppo.response_length or data.max_prompt_length, set ppo.gradient_checkpointing, or take a smaller model"
)


def tokens_a_pass(device: torch.device) -> int:
    """Padded tokens of a pass where no recipe says how many: as few as keep products large.

    Fewer are less memory and less padding. On a CPU that is few: a step of a reward model on real comparisons took 30,
    26 and 23 seconds with 1,536, 1,024 and 512, their scores alone 51, 35, 30 and 28 with 16,384, 4,096, 1,024 and 512.
    An iteration of RLOO or PPO is as fast with 512 as with 1,536, in 0.6 of the memory. On a GPU, which has not been
    measured, weights are dequantised for each pass.
    """
    return 512 if device.type == "cpu" else 4096


class TokenBudget:
    """Tokens that one phase computes at a time: halved when memory runs out, and raised again when that proves careful.

    Others may have had the memory for a while, and half is a wide step. So after a number of successes a quarter more
    is tried, up to what it began with. Where that is too much, it goes back to what was enough, and the next try comes
    after twice as many successes: an attempt that fails costs a phase's time.

    Args:
        phase: what to call it in a message.
        tokens: what to begin with.
        remedy: what to do where not even one sequence fits.
    """

    def __init__(self, phase: str, tokens: int, remedy: str = PPO_REMEDY) -> None:
        self.phase = phase
        self.tokens = tokens
        self.remedy = remedy
        self._most = tokens
        self._enough = 0  # before it was raised last; 0 while it has not been
        self._successes = 0
        self._patience = SUCCESSES_BEFORE_MORE

    def run(self, attempt: Callable[[int], Result], most: int, least: int) -> Result:
        """`attempt(tokens)`, from the start again with fewer tokens as long as memory runs out.

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
                result = attempt(tokens)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if tokens <= least:
                    raise UserError(
                        f"{self.phase}: out of memory with a single sequence of {least} tokens; {self.remedy} (see "
                        "`lorarlhf plan`)"
                    ) from error
            else:
                if tokens < most:  # else it says nothing of the budget
                    self._succeed()
                return result
            free_unused_memory()
            self.tokens = tokens = self._fail(tokens, least)

    def _fail(self, tokens: int, least: int) -> int:
        """What to try next."""
        self._successes = 0
        if 0 < self._enough < tokens:
            fewer, self._enough = max(least, self._enough), 0
            self._patience *= 2
            logger.info("%s: %d tokens at a time are too many; back to %d", self.phase, tokens, fewer)
            return fewer
        fewer = max(least, tokens // 2)
        logger.warning("%s: out of memory; going on with %d tokens at a time", self.phase, fewer)
        return fewer

    def _succeed(self) -> None:
        self._successes += 1
        if self._successes >= self._patience and self.tokens < self._most:
            self._enough, self._successes = self.tokens, 0
            self.tokens = min(self._most, self.tokens + max(1, self.tokens // 4))
            logger.info("%s: trying %d tokens at a time", self.phase, self.tokens)


@contextlib.contextmanager
def no_second_attempt(phase: str, remedy: str) -> Iterator[None]:
    """For what cannot be tried again with less: where memory runs out inside, one line says so.

    Raises:
        UserError: it has run out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{phase}: out of memory; {remedy}. Checkpoints stand: go on with --resume") from error


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

    return budget.run(attempt, most=sequences.computed_tokens, least=int(sequences.lengths.max()))

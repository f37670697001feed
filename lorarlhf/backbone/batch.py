"""Prompts and responses as one right-padded batch. Lengths say what is real; token ids never do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """A batch of prompt + response token sequences.

    Attributes:
        tokens: [B, L] ids, each row its prompt, its response, then padding of any value.
        prompt_lengths: [B], at least 1 each.
        response_lengths: [B], 0 or more.
        groups: [B] equal where rows have the same prompt and are to be computed side by side (`packing.py`); None where
            each row is computed by itself.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    groups: Tensor | None = None

    @classmethod
    def from_lists(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> TokenBatch:
        """Pad with 0, which no computation looks at."""
        rows = [torch.tensor([*p, *r], dtype=torch.long) for p, r in zip(prompts, responses, strict=True)]
        return cls(
            tokens=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            prompt_lengths=torch.tensor([len(p) for p in prompts]),
            response_lengths=torch.tensor([len(r) for r in responses]),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Tensor:
        """[B] prompt and response together."""
        return self.prompt_lengths + self.response_lengths

    @property
    def response_mask(self) -> Tensor:
        """[B, R] True on response tokens, R the longest response."""
        width = int(self.response_lengths.max()) if len(self) else 0
        return torch.arange(width, device=self.tokens.device) < self.response_lengths.unsqueeze(1)

    @property
    def computed_tokens(self) -> int:
        """Tokens that one pass over all rows computes, padding and all."""
        return self.tokens.numel() if self.groups is None else len(self._widths()) * max(self._widths())

    @property
    def padding_tokens(self) -> int:
        """Those of them that are no sequence's."""
        return self.computed_tokens - sum(self._widths())

    def _widths(self) -> list[int]:
        """Of each row that is computed, of a group its packed one."""
        if self.groups is None:
            lengths: list[int] = self.lengths.tolist()
            return lengths
        widths: dict[int, int] = {}
        sizes = torch.stack([self.groups, self.prompt_lengths, self.response_lengths])
        for group, prompt, response in sizes.t().tolist():
            widths[group] = widths.get(group, prompt) + response
        return list(widths.values())

    def lists(self) -> list[list[int]]:
        """The ids of each row, prompt and response."""
        return [row[:end] for row, end in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]

    def responses(self) -> list[list[int]]:
        """The ids of each response, stop token included."""
        spans = zip(self.prompt_lengths.tolist(), self.lengths.tolist(), strict=True)
        return [row[start:end] for row, (start, end) in zip(self.tokens.tolist(), spans, strict=True)]

    def select(self, rows: Tensor) -> TokenBatch:
        """Some of the rows, cut to the longest of them."""
        lengths = self.lengths[rows]
        return TokenBatch(
            tokens=self.tokens[rows, : int(lengths.max()) if len(lengths) else 0],
            prompt_lengths=self.prompt_lengths[rows],
            response_lengths=self.response_lengths[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def to(self, device: torch.device) -> TokenBatch:
        """The same on another device."""
        groups = None if self.groups is None else self.groups.to(device)
        return TokenBatch(
            self.tokens.to(device), self.prompt_lengths.to(device), self.response_lengths.to(device), groups
        )

    def micro_batches(self, token_budget: int) -> Iterator[Tensor]:
        """Rows of similar length together, each part at most `token_budget` tokens once padded (or one row).

        Rows of a group stay together as far as the budget lets them, and their prompt counts once.
        """
        lengths, responses = self.lengths.tolist(), self.response_lengths.tolist()
        groups = list(range(len(self))) if self.groups is None else self.groups.tolist()
        whole: dict[int, int] = {}  # the width of each group's packed row
        for group, length, response in zip(groups, lengths, responses, strict=True):
            whole[group] = whole.get(group, length - response) + response
        part: list[int] = []
        widths: list[int] = []  # of the part's packed rows
        for row in sorted(range(len(self)), key=lambda row: (-whole[groups[row]], groups[row])):
            if part and groups[row] == groups[part[-1]]:
                after = [*widths[:-1], widths[-1] + responses[row]]
            else:
                after = [*widths, lengths[row]]
            if part and len(after) * max(after) > token_budget:
                yield torch.tensor(part, device=self.tokens.device)
                part, after = [], [lengths[row]]
            part.append(row)
            widths = after
        if part:
            yield torch.tensor(part, device=self.tokens.device)


def parts_of_similar_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows to pad and compute together, each part at most `tokens` once padded (or one row): what costs least in all.

    More parts are less padding, but a pass has a cost of its own, as of a sixteenth of `tokens`: on a CPU, passes of
    SmolLM2-135M took 5 ms a token and 150 besides.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    best = [(0, 0)]  # for the first rows: the least cost, and where the last part begins
    for end in range(1, len(order) + 1):
        sizes = ((start, (end - start) * lengths[order[start]]) for start in range(end))
        best.append(min((best[k][0] + n + tokens // 16, k) for k, n in sizes if n <= tokens or k == end - 1))
    parts = []
    while order:
        start = best[len(order)][1]
        parts.append(order[start:])
        order = order[:start]
    return parts[::-1]


def with_end(batch: TokenBatch, end_id: int) -> TokenBatch:
    """The same sequences with `end_id` for the last token of each response, whatever stopped it.

    A policy may stop with any of several tokens, or at the limit. A reward model has only seen the one that ends its
    training rows, and that is the token its score is read at: what it says of a response that breaks off is mostly
    noise (docs/results-reward-models.md). For scoring alone: the action that was sampled, and so its log-probability,
    stays what it was.
    """
    rows = torch.nonzero(batch.response_lengths).squeeze(1)
    last = batch.lengths[rows] - 1
    tokens = batch.tokens.clone()
    tokens[rows, last] = end_id
    return replace(batch, tokens=tokens)

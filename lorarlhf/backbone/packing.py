"""Sequences that begin alike, side by side in one row: what they begin with is computed once, forward and backward.

The responses to one prompt (RLOO, GRPO, best-of-n) and the two sides of a comparison share their prompts. A packed row
is a prompt and then each response; a mask lets a response's tokens see the prompt and themselves, and their positions
go on from the prompt's. Every token's states are what they are in a row of its own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lorarlhf.backbone.batch import TokenBatch

PADDING = -1
PROMPT = 0  # which branch a column is of: the prompt, or one of the responses from 1 on
MULTIPLE = 8  # of a packed row's width: fused attention wants its masks aligned
# Where configurations say how far a layer of theirs looks back, or at how many tokens. A mask from outside would be
# taken for all layers.
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention", "index_topk", "keep_window_size")


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch [B, L] stand once they are packed into [G, W].

    Attributes:
        sources: [G, W] index into the batch's B*L tokens of what stands in each place; any at padding.
        places: [B, L] index into the G*W places of where each token stands; any at padding.
        branches: [G, W] PROMPT, the number of a response in its row, or PADDING.
    """

    sources: Tensor
    places: Tensor
    branches: Tensor

    @classmethod
    def of(cls, sequences: TokenBatch) -> Packing:
        """A row for each of the batch's groups."""
        assert sequences.groups is not None
        length = sequences.tokens.shape[1]
        sizes = torch.stack([sequences.groups, sequences.prompt_lengths, sequences.lengths])
        groups, prompts, ends = sizes.tolist()  # a GPU is waited for once
        rows: dict[int, list[int]] = defaultdict(list)
        for row, group in enumerate(groups):
            rows[group].append(row)
        sources, branches = [], []
        for members in rows.values():
            prompt = prompts[members[0]]
            pieces = [torch.arange(prompt) + members[0] * length]
            pieces += [torch.arange(prompt, ends[row]) + row * length for row in members]
            sources.append(torch.cat(pieces))
            branches.append(torch.cat([torch.full_like(piece, number) for number, piece in enumerate(pieces)]))
        width = -(-max(map(len, sources)) // MULTIPLE) * MULTIPLE
        places = torch.zeros(len(sequences), length, dtype=torch.long)
        for number, (members, source) in enumerate(zip(rows.values(), sources, strict=True)):
            places.view(-1)[source] = torch.arange(len(source)) + number * width
            for row in members:
                places[row, : prompts[row]] = places[members[0], : prompts[row]]
        device = sequences.tokens.device
        padded = _padded(sources, 0, width), places, _padded(branches, PADDING, width)
        return cls(*(tensor.to(device) for tensor in padded))

    def inputs(self, sequences: TokenBatch, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a forward pass takes: tokens and positions [G, W], and a mask [G, 1, W, W] that is added to scores."""
        columns = torch.arange(self.sources.shape[1], device=self.sources.device)
        query, key = self.branches.unsqueeze(2), self.branches.unsqueeze(1)
        seen = (columns <= columns.unsqueeze(1)) & ((key == PROMPT) | (key == query))
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
        return {
            "input_ids": sequences.tokens.flatten()[self.sources],
            "position_ids": self.sources % sequences.tokens.shape[1],  # a token's column in its own row
            "attention_mask": mask.unsqueeze(1),
        }

    def pack(self, states: Tensor) -> Tensor:
        """[B, L, H] of the batch to [G, W, H]."""
        return states.flatten(0, 1)[self.sources]

    def unpack(self, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """[G, W, H] back to [B, L, H]; or to [B, N, H], of the columns [B, N] of each row alone."""
        places = self.places if columns is None else self.places.gather(1, columns)
        found = states.flatten(0, 1).index_select(0, places.flatten())
        return found.view(*places.shape, *states.shape[2:])


def unpacked(states: Tensor, sequences: TokenBatch) -> Tensor:
    """What a layer was given in a pass over a batch, as [B, L, H], whether or not it was packed."""
    return states if sequences.groups is None else Packing.of(sequences).unpack(states)


def _padded(rows: list[Tensor], value: int, width: int) -> Tensor:
    """[G, width] of rows of any length."""
    padded = pad_sequence(rows, batch_first=True, padding_value=value)
    return torch.nn.functional.pad(padded, (0, width - padded.shape[1]), value=value)

"""Sequences that begin alike, side by side in one row: what they begin with is computed once, forward and backward.

The responses to one prompt (RLOO, GRPO, best-of-n) and the two sides of a comparison share their prompts. A packed row
is a prompt and then each response; a mask lets a response's tokens see the prompt and themselves, and their positions
go on from the prompt's. Every token's states are what they are in a row of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lorarlhf.backbone.batch import TokenBatch

if TYPE_CHECKING:
    from lorarlhf.backbone.shared import SharedBackbone

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
        prompts, ends = sequences.prompt_lengths.tolist(), sequences.lengths.tolist()
        rows: dict[int, list[int]] = defaultdict(list)
        for row, group in enumerate(sequences.groups.tolist()):
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

    def unpack(self, states: Tensor) -> Tensor:
        """[G, W, H] back to [B, L, H]."""
        found = states.flatten(0, 1).index_select(0, self.places.flatten())
        return found.view(*self.places.shape, *states.shape[2:])


def unpacked(states: Tensor, sequences: TokenBatch) -> Tensor:
    """What a layer was given in a pass over a batch, as [B, L, H], whether or not it was packed."""
    return states if sequences.groups is None else Packing.of(sequences).unpack(states)


def grouped(backbone: SharedBackbone, sequences: TokenBatch) -> TokenBatch:
    """The same batch, told which rows to compute behind one prompt: those with the same, as far as it saves work."""
    if not _can_pack(backbone, sequences.lengths.tolist()):
        return sequences
    groups: list[int] = []
    widths: list[int] = []  # of each group's row so far
    latest: dict[tuple[int, ...], int] = {}  # group of each prompt
    prompts, responses = sequences.prompt_lengths.tolist(), sequences.response_lengths.tolist()
    for row, prompt, response in zip(sequences.tokens.tolist(), prompts, responses, strict=True):
        key = tuple(row[:prompt])
        group = latest.get(key)
        if group is None or not _saves_work(backbone, widths[group], prompt + response, widths[group] + response):
            group = latest[key] = len(widths)
            widths.append(prompt)
        widths[group] += response
        groups.append(group)
    if len(widths) == len(sequences):
        return sequences
    return replace(sequences, groups=torch.tensor(groups, device=sequences.tokens.device))


def side_by_side(backbone: SharedBackbone, rows: Sequence[Sequence[int]]) -> TokenBatch:
    """Whole sequences as a batch, on the CPU, of which those that begin alike are computed behind what they share.

    For scores, which are read at a sequence's end: where its prompt ends makes no difference to them, so what is shared
    counts as the prompt.
    """
    if _can_pack(backbone, [len(row) for row in rows]):
        found = _beginning_alike(backbone, rows)
    else:
        found = [([i], len(row)) for i, row in enumerate(rows)]
    shared, groups = [0] * len(rows), [0] * len(rows)
    for group, (members, common) in enumerate(found):
        for i in members:
            shared[i], groups[i] = common, group
    batch = TokenBatch.from_lists(
        [row[:length] for row, length in zip(rows, shared, strict=True)],
        [row[length:] for row, length in zip(rows, shared, strict=True)],
    )
    return replace(batch, groups=torch.tensor(groups)) if len(found) < len(rows) else batch


def _can_pack(backbone: SharedBackbone, lengths: Sequence[int]) -> bool:
    """Whether any of the rows can be packed: one that a window cuts off by itself would lose it to the others' mask."""
    window = backbone.attention_window
    return backbone.packs_prompts and (window is None or max(lengths, default=0) <= window)


def _beginning_alike(backbone: SharedBackbone, rows: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Which rows to compute together, and how many tokens they all begin with."""
    found: list[tuple[list[int], int]] = []

    def width(members: list[int], common: int) -> int:
        return common + sum(len(rows[i]) - common for i in members)

    for i in sorted(range(len(rows)), key=lambda i: list(rows[i])):  # so that those most alike are neighbours
        if found:
            members, common = found[-1]
            still_common = _common(rows[members[0]][:common], rows[i])
            joined = width([*members, i], still_common)
            if _saves_work(backbone, width(members, common), len(rows[i]), joined):
                found[-1] = [*members, i], still_common
                continue
        found.append(([i], len(rows[i])))
    return found


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _saves_work(backbone: SharedBackbone, width: int, alone: int, joined: int) -> bool:
    """Whether a packed row of `width` tokens is better made `joined` wide than followed by another of `alone`.

    Work is counted in products: a token costs about 12 H^2 in a layer, and 2 H with each place that its row has, as a
    mask spares attention nothing. So a row is at some point better ended.
    """
    window = backbone.attention_window
    if window is not None and joined > window:
        return False
    hidden = backbone.reward_head.in_features

    def work(width: int) -> int:
        return width * (6 * hidden + width)

    return work(joined) < work(width) + work(alone)


def _padded(rows: list[Tensor], value: int, width: int) -> Tensor:
    """[G, width] of rows of any length."""
    padded = pad_sequence(rows, batch_first=True, padding_value=value)
    return torch.nn.functional.pad(padded, (0, width - padded.shape[1]), value=value)

"""Which rows of a batch to compute behind one prompt (`packing.py`), as far as that is less work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.shared import SharedBackbone


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

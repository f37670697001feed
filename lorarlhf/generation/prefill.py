"""The prompts of a batch into one cache, some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lorarlhf.backbone.shared import SharedBackbone

PREFILL_TOKENS = 4096  # padded prompt tokens at a time: enough to keep a GPU busy


class Prompts:
    """Left-padded, so that all rows go on from the same column.

    Attributes:
        inputs, positions: [n, W] token ids and their places; attention: [n, W + limit], 0 only at padding.
        distinct: rows of which no earlier one is the same prompt; copied_from: [n] of each row, its place among those;
            places: the same as numbers, since the planner's tensors hold none.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], limit: int, device: torch.device) -> None:
        n, width = len(prompts), max(len(p) for p in prompts)
        self.inputs = torch.zeros(n, width, dtype=torch.long, device=device)
        self.attention = torch.ones(n, width + limit, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            self.inputs[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
            self.attention[row, : width - len(prompt)] = 0
        # Places count real tokens only: padding on the left must not move a prompt along its positions.
        self.positions = (self.attention[:, :width].cumsum(1) - 1).clamp(min=0)
        first: dict[tuple[int, ...], int] = {}  # row of each distinct prompt
        for row, prompt in enumerate(prompts):
            first.setdefault(tuple(prompt), row)
        places = {prompt: place for place, prompt in enumerate(first)}
        self.distinct = torch.tensor(list(first.values()), device=device)
        self.places = [places[tuple(prompt)] for prompt in prompts]
        self.copied_from = torch.tensor(self.places, device=device)


def fill(backbone: SharedBackbone, prompts: Prompts, into: StaticCache | None = None) -> tuple[Tensor, Cache]:
    """Compute the prompts, each once however many rows begin with it, and keep what later tokens need of them.

    A pass over all prompts at once holds activations of thousands of tokens where a step of decoding holds those of one
    a row: it, and not the cache, would say how many rows can be decoded at a time. So the passes are over groups of
    rows, each with a cache of its own and a mask of the prompts alone, whose content is then brought together.

    Args:
        into: a cache of fixed size to write to; None makes a growing one.

    Returns:
        scores [n, V] after each prompt, and the cache.
    """
    n, width = prompts.inputs.shape
    caches: list[Cache] = []
    scores: list[Tensor] = []
    size = _rows_a_group(backbone, n, width)
    for first in range(0, len(prompts.distinct), size):
        rows = prompts.distinct[first : first + size]
        cache = backbone.growing_cache()
        hidden = backbone.cached_states(
            prompts.inputs[rows], prompts.attention[rows, :width], prompts.positions[rows], cache
        )
        scores.append(backbone.logits(hidden[:, -1]))
        if into is None:
            caches.append(cache)
        else:
            copies = [row for row, place in enumerate(prompts.places) if first <= place < first + size]
            targets = torch.tensor(copies, device=rows.device)
            _write(cache, into, targets, prompts.copied_from[targets] - first, n)
    all_scores = scores[0] if len(scores) == 1 else torch.cat(scores)
    if len(prompts.distinct) < n:
        all_scores = all_scores[prompts.copied_from]
    if into is not None:
        return all_scores, into
    whole = _joined(caches)
    if len(prompts.distinct) < n:
        backbone.keep_rows(whole, prompts.copied_from)
    return all_scores, whole


def _rows_a_group(backbone: SharedBackbone, n: int, width: int) -> int:
    # What other kinds of layers keep (recurrent states, say) has no rows that could be put together from outside.
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in backbone.growing_cache().layers)
    return max(1, PREFILL_TOKENS // width) if plain else n


def _joined(caches: list[Cache]) -> Cache:
    """One cache with the rows of all, layer by layer: never twice more than a layer."""
    whole = caches[0]
    layers: list[list[Any]] = [list(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)]
    for first, *others in layers:
        if others and first.is_initialized:  # one that reads another's keys is not
            for name in ("keys", "values"):
                setattr(first, name, torch.cat([getattr(layer, name) for layer in (first, *others)]))
                for layer in others:
                    setattr(layer, name, None)
    return whole


def _write(cache: Cache, into: StaticCache, targets: Tensor, sources: Tensor, n: int) -> None:
    """Rows `sources` of a group's cache to the rows `targets` of one of fixed size with n rows."""
    source: list[Any] = list(cache.layers)
    target: list[Any] = list(into.layers)
    for layer, static in zip(source, target, strict=True):
        if not layer.is_initialized:
            continue
        if not static.is_initialized:
            like = (tensor[:1].expand(n, -1, -1, -1) for tensor in (layer.keys, layer.values))
            static.lazy_initialization(*like)
        width = layer.keys.shape[2]
        static.keys[targets, :, :width] = layer.keys[sources]
        static.values[targets, :, :width] = layer.values[sources]
        static.cumulative_length.fill_(width)
        layer.keys = layer.values = None  # it goes as the other fills

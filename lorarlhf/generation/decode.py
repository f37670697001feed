"""Next-token scores for a batch of growing sequences, over a key-value cache that grows or one that is captured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers import Cache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.generation.capture import CAPTURABLE_ATTENTION, FIRST_SOUND_TORCH, Captured, CaptureError, capture
from lorarlhf.generation.prefill import Prompts, fill

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Used inside `backbone.role` and `backbone.autocast`, without gradients.

    `start` gives the scores [n, V] after the prompts, `step` those after one more token [n] a row, and `keep` leaves
    only some of the rows, given by their present indices.
    """

    def start(self) -> Tensor: ...
    def step(self, tokens: Tensor) -> Tensor: ...
    def keep(self, rows: Tensor) -> None: ...


def make_decoder(backbone: SharedBackbone, prompts: list[Sequence[int]], limit: int) -> Decoder:
    """The decoder for this device and model: captured on a GPU where a step can be, else one whose cache grows."""
    captured = backbone.device.type == "cuda" and capture_fault(backbone, max(map(len, prompts)) + limit) is None
    return (StaticDecoder if captured else GrowingDecoder)(backbone, prompts, limit)


def capture_fault(backbone: SharedBackbone, length: int) -> str | None:
    """Why a step of decoding up to `length` tokens cannot be recorded as a graph; None if it can, as far as is known.

    What a graph does must be the same work whatever came before, without a question from Python to the GPU.
    """
    model = backbone.causal_lm
    used = model.config.get_text_config()._attn_implementation
    if torch.__version__ < FIRST_SOUND_TORCH:
        return f"torch {torch.__version__} does not clean up after a capture that fails"
    if StaticDecoder.failure is not None:
        return StaticDecoder.failure
    if getattr(model, "is_loaded_in_8bit", False):
        return "bitsandbytes asks the GPU for outliers at each int8 product"
    if used not in CAPTURABLE_ATTENTION:
        # It would also take a static cache's empty places, of which its mask says nothing, for tokens.
        return f"{used} asks the GPU for lengths"
    if not model._can_compile_fullgraph:
        return "the family branches on what it computes"
    if static_cache(backbone, length) is None:
        return "the family keeps no list of keys and values, or a sliding window is shorter than the rows"
    return None


def static_cache(backbone: SharedBackbone, length: int) -> StaticCache | None:
    """A cache of fixed size for so many tokens; None where a layer keeps something else, or not all of them.

    A sliding window that is wide enough hides nothing, so its layers are plain ones here: transformers' own for windows
    count tokens in Python, which a graph would not.
    """
    config = backbone.causal_lm.config
    kinds = {type(layer) for layer in backbone.growing_cache().layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return None
    cache = StaticCache(config, max_cache_len=length)
    layers: list[Any] = list(cache.layers)
    if any(layer.max_cache_len < length for layer in layers):
        return None
    cache.layers = [StaticLayer(length) for _ in layers]
    return cache


class GrowingDecoder:
    """For any model and device: the cache grows by a token a step, and rows leave it at once."""

    def __init__(self, backbone: SharedBackbone, prompts: list[Sequence[int]], limit: int) -> None:
        self.backbone = backbone
        self.prompts = Prompts(prompts, limit, backbone.device)
        self.cache: Cache = backbone.growing_cache()
        self.attention, self.positions = self.prompts.attention, self.prompts.positions[:, -1:]

    def start(self) -> Tensor:
        scores, self.cache = fill(self.backbone, self.prompts)
        return scores

    def step(self, tokens: Tensor) -> Tensor:
        self.positions = self.positions + 1
        seen = self.cache.get_seq_length() + 1
        hidden = self.backbone.cached_states(tokens.unsqueeze(1), self.attention[:, :seen], self.positions, self.cache)
        return self.backbone.logits(hidden[:, -1])

    def keep(self, rows: Tensor) -> None:
        self.backbone.keep_rows(self.cache, rows)
        self.attention, self.positions = self.attention[rows], self.positions[rows]


class StaticDecoder:
    """A cache of its final size from the start, and the step captured once as a CUDA graph and replayed.

    A step of a small batch is hundreds of short kernels, which take longer to launch than to run. Adapters are read
    where they lie, so what trains between two rollouts needs no new graph; a change of the batch does: rows that have
    ended go on computing until they are half of it, then leave.

    Attributes:
        failure: why a capture has failed in this process. None is tried again: it costs a plain run and more.
    """

    failure: ClassVar[str | None] = None

    def __init__(self, backbone: SharedBackbone, prompts: list[Sequence[int]], limit: int) -> None:
        self.backbone = backbone
        self.prompts = Prompts(prompts, limit, backbone.device)
        self.attention = self.prompts.attention
        cache = static_cache(backbone, self.attention.shape[1])
        assert cache is not None  # `capture_fault` has said so
        self.cache = cache
        self.layers: list[Any] = list(cache.layers)
        self.rows = torch.arange(len(prompts), device=backbone.device)  # of the batch that still matter
        self.tokens = torch.zeros(len(prompts), 1, dtype=torch.long, device=backbone.device)
        self.positions = self.prompts.positions[:, -1:].clone()
        self.captured: Captured | None = None
        self.capturing = backbone.device.type == "cuda"

    def start(self) -> Tensor:
        scores, _ = fill(self.backbone, self.prompts, self.cache)
        return scores

    def step(self, tokens: Tensor) -> Tensor:
        # In place: a captured graph reads its inputs where they lay when it was captured.
        self.tokens[self.rows, 0] = tokens
        self.positions.add_(1)
        if self.captured is None and self.capturing:
            self.captured = self._capture()
        if self.captured is None:
            return self._forward()[self.rows]
        self.captured.graph.replay()
        return self.captured.output[self.rows]

    def keep(self, rows: Tensor) -> None:
        self.rows = self.rows[rows]
        if 2 * len(self.rows) > len(self.tokens):
            return
        # A graph is of one shape: half the rows make a new capture worth its time, one row less does not.
        self.captured = None  # frees what it holds before the copies are made
        for layer in self.layers:
            if layer.is_initialized:  # one that reads another's keys is not
                layer.keys, layer.values = layer.keys[self.rows], layer.values[self.rows]
        self.tokens, self.positions = self.tokens[self.rows], self.positions[self.rows]
        self.attention = self.attention[self.rows]
        self.rows = torch.arange(len(self.rows), device=self.rows.device)

    def _forward(self) -> Tensor:
        hidden = self.backbone.cached_states(self.tokens, self.attention, self.positions, self.cache)
        return self.backbone.logits(hidden[:, -1])

    def _capture(self) -> Captured | None:
        """The step as a graph; None, once and for all, if that fails."""
        # Each run of the step writes a token into the cache and moves it on by one: all must write the same place.
        lengths = [layer.cumulative_length.clone() for layer in self.layers]

        def rewind() -> None:
            for layer, length in zip(self.layers, lengths, strict=True):
                layer.cumulative_length.copy_(length)

        try:
            return capture(self._forward, rewind)
        except CaptureError as error:
            StaticDecoder.failure = str(error)
            self.capturing = False
            logger.warning("decoding without a CUDA graph from here on, which is slower: %s", error)
            return None

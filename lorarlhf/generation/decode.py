"""Next-token scores for a batch of growing sequences, over a key-value cache that grows or one that is captured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StaticCache

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import first_line

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
    """The decoder for this device and model: captured on a GPU if the model's cache can be of a fixed size."""
    captured = backbone.device.type == "cuda" and can_be_static(backbone)
    return (StaticDecoder if captured else GrowingDecoder)(backbone, prompts, limit)


def can_be_static(backbone: SharedBackbone) -> bool:
    """Whether a step is the same work whatever came before: full attention everywhere, no data-dependent branch."""
    if not backbone.causal_lm._can_compile_fullgraph:
        return False
    layers: list[Any] = list(StaticCache(backbone.causal_lm.config, max_cache_len=1).layers)
    return not any(layer.is_sliding for layer in layers)


class _Prompts:
    """Left-padded, so that all rows go on from the same column.

    Attributes:
        inputs, positions: [n, W] token ids and their places; attention: [n, W + limit], 0 only at padding.
    """

    def __init__(self, prompts: list[Sequence[int]], limit: int, device: torch.device) -> None:
        n, width = len(prompts), max(len(p) for p in prompts)
        self.inputs = torch.zeros(n, width, dtype=torch.long, device=device)
        self.attention = torch.ones(n, width + limit, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            self.inputs[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
            self.attention[row, : width - len(prompt)] = 0
        # Places count real tokens only: padding on the left must not move a prompt along its positions.
        self.positions = (self.attention[:, :width].cumsum(1) - 1).clamp(min=0)


class GrowingDecoder:
    """For any model and device: the cache grows by a token a step, and rows leave it at once."""

    def __init__(self, backbone: SharedBackbone, prompts: list[Sequence[int]], limit: int) -> None:
        self.backbone = backbone
        self.prompts = _Prompts(prompts, limit, backbone.device)
        self.cache = backbone.growing_cache()
        self.attention, self.positions = self.prompts.attention, self.prompts.positions

    def start(self) -> Tensor:
        return self._forward(self.prompts.inputs)

    def step(self, tokens: Tensor) -> Tensor:
        self.positions = self.positions[:, -1:] + 1
        return self._forward(tokens.unsqueeze(1))

    def keep(self, rows: Tensor) -> None:
        self.backbone.keep_rows(self.cache, rows)
        self.attention, self.positions = self.attention[rows], self.positions[rows]

    def _forward(self, inputs: Tensor) -> Tensor:
        seen = self.cache.get_seq_length() + inputs.shape[1]
        hidden = self.backbone.cached_states(inputs, self.attention[:, :seen], self.positions, self.cache)
        return self.backbone.logits(hidden[:, -1])


class StaticDecoder:
    """A cache of its final size from the start, and the step captured once as a CUDA graph and replayed.

    A step of a small batch is hundreds of short kernels, which take longer to launch than to run. Adapters are read
    where they lie, so what trains between two rollouts needs no new graph; a change of the batch does: rows that have
    ended go on computing until they are half of it, then leave.
    """

    def __init__(self, backbone: SharedBackbone, prompts: list[Sequence[int]], limit: int) -> None:
        self.backbone = backbone
        self.prompts = _Prompts(prompts, limit, backbone.device)
        self.attention = self.prompts.attention
        self.cache = StaticCache(backbone.causal_lm.config, max_cache_len=self.attention.shape[1])
        self.layers: list[Any] = list(self.cache.layers)
        self.rows = torch.arange(len(prompts), device=backbone.device)  # of the batch that still matter
        self.tokens = torch.zeros(len(prompts), 1, dtype=torch.long, device=backbone.device)
        self.positions = self.prompts.positions[:, -1:].clone()
        self.graph: Any = None
        self.logits: Tensor | None = None
        self.capturing = backbone.device.type == "cuda"

    def start(self) -> Tensor:
        return self._forward(self.prompts.inputs, self.prompts.positions)

    def step(self, tokens: Tensor) -> Tensor:
        # In place: a captured graph reads its inputs where they lay when it was captured.
        self.tokens[self.rows, 0] = tokens
        self.positions.add_(1)
        if self.graph is None and self.capturing:
            self._capture()
        if self.graph is None:
            return self._forward(self.tokens, self.positions)[self.rows]
        self.graph.replay()
        assert self.logits is not None
        return self.logits[self.rows]

    def keep(self, rows: Tensor) -> None:
        self.rows = self.rows[rows]
        if 2 * len(self.rows) > len(self.tokens):
            return
        # A graph is of one shape: half the rows make a new capture worth its time, one row less does not.
        self.graph = self.logits = None  # frees what it holds before the copies are made
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[self.rows], layer.values[self.rows]
        self.tokens, self.positions = self.tokens[self.rows], self.positions[self.rows]
        self.attention = self.attention[self.rows]
        self.rows = torch.arange(len(self.rows), device=self.rows.device)

    def _forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        hidden = self.backbone.cached_states(inputs, self.attention, positions, self.cache)
        return self.backbone.logits(hidden[:, -1])

    def _capture(self) -> None:
        """Record the step, and check that replaying gives what running it gave; if not, go on without a graph."""
        # Each run below writes a token into the cache and moves it on by one; all of them must write the same place.
        lengths = [layer.cumulative_length.clone() for layer in self.layers]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # the first run may choose algorithms, which a capture must not
            expected = self._forward(self.tokens, self.positions)
        torch.cuda.current_stream().wait_stream(side)
        self._rewind(lengths)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                logits = self._forward(self.tokens, self.positions)
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._go_without(first_line(error), lengths)
            return
        self._rewind(lengths)
        if not torch.allclose(logits.float(), expected.float(), rtol=0.05, atol=0.05):
            self._go_without("a replay differs from a plain run", lengths)
            return
        self.graph, self.logits = graph, logits

    def _rewind(self, lengths: list[Tensor]) -> None:
        for layer, length in zip(self.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)

    def _go_without(self, reason: str, lengths: list[Tensor]) -> None:
        logger.warning("decoding without a CUDA graph, which is slower: %s", reason)
        self.capturing = False
        self._rewind(lengths)

"""Run a part of a model's layers, with everything around them the family's own.

Why: reward model and critic adapt only the upper layers. What lies below is the bare base model's for both, through
every epoch of an iteration, so it is computed once and kept.

A layer is taken out by giving it, for a while, a forward that hands its input on. A shorter list of layers would be the
plain way, but a model's own forward counts its layers by the config, gives each the mask of its type and looks up its
cache by number; left at its full length, all of that stays transformers', whatever the family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from lorarlhf.errors import UserError


@dataclass(frozen=True)
class TrunkStates:
    """What the bare base model has computed below a layer; adapters that begin there or above go on from it.

    Attributes:
        states: [B, L, H] input of that layer.
        layer: index of the layer.
    """

    states: Tensor
    layer: int

    def select(self, rows: Tensor, width: int) -> TrunkStates:
        """Some of the rows, cut to a width."""
        return TrunkStates(self.states[rows, :width], self.layer)


def layers_path(causal_lm: PreTrainedModel) -> str:
    """Where the list of the decoder's layers is in a model.

    Raises UserError if the model has no such list.
    """
    decoder = causal_lm.get_decoder()  # of text and images: the text model, as either may have that many layers
    if not isinstance(decoder, PreTrainedModel):  # ModernBERT calls its head so
        decoder = causal_lm
    count = getattr(causal_lm.config.get_text_config(decoder=True), "num_hidden_layers", None)
    inside = {id(module) for module in decoder.modules()}
    for path, module in causal_lm.named_modules():
        if id(module) in inside and isinstance(module, nn.ModuleList) and len(module) == count:
            return str(path)
    raise UserError(
        f"model.name: {type(causal_lm).__name__} does not keep its layers in one list, so they take no adapters; "
        "choose another model"
    )


def trunk_path(causal_lm: PreTrainedModel, layers: str) -> str:
    """Where the innermost model is that runs these layers: tokens in, last hidden states out."""
    parts = layers.split(".")
    paths = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
    return next(path for path in paths if isinstance(causal_lm.get_submodule(path), PreTrainedModel))


class _LastHiddenStates(BaseModelOutputWithPast):
    """What a trunk returns. Whatever else a family's head asks of it (routers, images) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextlib.contextmanager
def returning(states: Tensor, modules: Iterable[nn.Module]) -> Iterator[None]:
    """These modules do not run, and give `states` for their last hidden states."""
    with _forward(modules, lambda *_, **__: _LastHiddenStates(last_hidden_state=states)):
        yield


@contextlib.contextmanager
def without(layers: Iterable[nn.Module]) -> Iterator[None]:
    """These layers hand their input on unchanged."""
    with _forward(layers, lambda hidden_states, *_, **__: hidden_states):
        yield


@contextlib.contextmanager
def starting_from(states: Tensor, layers: nn.ModuleList, layer: int) -> Iterator[None]:
    """Layers below `layer` are left out, and it gets `states` for its input."""
    # The lowest layer puts the states in, and those between hand them on. Tokens are still embedded, as the model
    # takes batch, length and positions from that.
    # Under gradient checkpointing the stand-ins are gone by the time of backward. That is sound because they keep no
    # tensor for it, and a checkpoint is only computed again for the tensors that were kept in it.
    with without(layers[1:layer]), _forward(layers[: min(layer, 1)], lambda *_, **__: states):
        yield


@contextlib.contextmanager
def recorded_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The hidden states that the layer is given, call by call."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])  # families call their layers in either way

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        handle.remove()


@contextlib.contextmanager
def _forward(layers: Iterable[nn.Module], forward: Any) -> Iterator[None]:
    # Set on the object, where it hides the class's forward, and torch's hooks still run around it. One that was set
    # there already (accelerate does so, and so do stand-ins for kernels) is put back.
    changed = [(layer, vars(layer).get("forward")) for layer in layers]
    for layer, _ in changed:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, earlier in changed:
            if earlier is None:
                del layer.forward
            else:
                layer.forward = earlier

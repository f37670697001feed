"""A backbone without weights, on which a step can be run to see what memory it would take.

Its tensors are on torch's meta device: they have shapes and types but no data. The model, its adapters and the passes
are the real ones, so whatever they allocate is counted, for any family; only kernels that have no meta version
(bitsandbytes, fused attention) are replaced by stand-ins that allocate and keep the same tensors.
"""

from __future__ import annotations

import contextlib
import copy
import types
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.checks import sharing_fault
from lorarlhf.backbone.load import attention, compute_dtype, quantization_config
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import ModelConfig

aten = torch.ops.aten
QUANTISED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)


class ShadowBackbone(SharedBackbone):
    """A SharedBackbone on the meta device that allocates as one on `target` would.

    Args:
        config: the recipe's model section.
        model_config: the model's own configuration.
        target: "cuda" or "cpu".
        layers: how many layers to make; None makes all.
    """

    def __init__(
        self, config: ModelConfig, model_config: PreTrainedConfig, target: str, layers: int | None = None
    ) -> None:
        causal_lm = shadow_model(config, model_config, target, layers)
        super().__init__(causal_lm, None, causal_lm.dtype)  # type: ignore[arg-type]
        self.target = torch.device(target)
        for module in causal_lm.modules():
            if isinstance(module, QUANTISED):
                module.forward = types.MethodType(_quantised_forward, module)  # type: ignore[method-assign]
        for head in (self.reward_head, self.value_head):
            head.forward = types.MethodType(_scalar_head, head)  # type: ignore[method-assign]
        with self.on_meta(), Allocations((), vocabulary=0):
            self.shares_trunk = sharing_fault(self) is None

    @property
    def device(self) -> torch.device:
        """Once it is made, where the real one would be: chunk sizes depend on it."""
        target: torch.device = self.__dict__.get("target", torch.device("meta"))
        return target

    @contextlib.contextmanager
    def on_meta(self) -> Iterator[None]:
        """For what makes tensors of its own on the backbone's device."""
        before, self.target = self.target, torch.device("meta")
        try:
            yield
        finally:
            self.target = before

    def attach(self, *args: Any) -> None:
        with torch.device("meta"):
            super().attach(*args)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Meta tensors know no autocast; the layers below cast by themselves."""
        return contextlib.nullcontext()


def shadow_model(
    config: ModelConfig, model_config: PreTrainedConfig, target: str, layers: int | None = None
) -> PreTrainedModel:
    """The base model as it would be loaded, on the meta device."""
    model_config = copy.deepcopy(model_config)
    if layers is not None:
        _keep_layers(model_config.get_text_config(), layers)
    dtype = _compute_dtype(config, target)
    with torch.device("meta"):
        causal_lm: PreTrainedModel = AutoModelForCausalLM.from_config(
            model_config,
            dtype=dtype,
            attn_implementation=_attention(config, dtype, target),
            trust_remote_code=config.trust_remote_code,
        )
        quantization = quantization_config(config, dtype)
        if quantization is not None:
            quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
            quantizer.preprocess_model(causal_lm, device_map=None)
            quantizer.postprocess_model(causal_lm)
        for module in causal_lm.modules():
            if isinstance(module, QUANTISED) and module.bias is not None:  # loaded in the type of the others
                module.bias.data = module.bias.data.to(dtype)
    return causal_lm


def _keep_layers(config: PreTrainedConfig, layers: int) -> None:
    before = config.num_hidden_layers
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == before:  # a setting for each layer
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers


class FullBatch(TokenBatch):
    """[rows, prompt + response] sequences without content, none of them padded."""

    def __init__(self, rows: int, prompt: int, response: int) -> None:
        like = torch.empty(rows, prompt + response, dtype=torch.long, device="meta")
        super().__init__(like, like[:, 0], like[:, 0])
        object.__setattr__(self, "width", response)

    @property
    def response_mask(self) -> Tensor:
        return torch.empty(len(self), self.width, dtype=torch.bool, device="meta")  # type: ignore[attr-defined]


class Allocations(TorchDispatchMode):
    """Counts what the operations inside the block allocate on the meta device, while it is alive.

    Args:
        known: tensors whose memory is not to be counted.
        vocabulary: tensors of this last dimension are "logits", all others "activations".
        padded: whether a batch's attention mask is to be taken for one with padding.

    Attributes:
        now: bytes by kind at present.
        peak: bytes by kind at the moment when their sum was largest.
    """

    def __init__(self, known: Iterable[Tensor], vocabulary: int, padded: bool = False) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.padded = padded
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._storages: dict[int, Any] = {}
        self._known = list(known)
        self._known_storages = {tensor.untyped_storage()._cdata for tensor in self._known}

    def __enter__(self) -> Allocations:
        # Not a TorchFunctionMode: it would be off where checkpointing computes again.
        self._attention: Any = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = _attend  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        F.scaled_dot_product_attention = self._attention

    def relabel(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor that has been counted already as of another kind."""
        key = tensor.untyped_storage()._cdata
        reference, before, size = self._storages[key]
        self._storages[key] = (reference, kind, size)
        self.now[before] -= size
        self.now[kind] += size

    def _count(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if tensor.device.type != "meta" or key in self._storages or key in self._known_storages:
            return
        size = -(-storage.nbytes() // 512) * 512  # as torch's CUDA allocator rounds
        self._storages[key] = (weakref.ref(storage, lambda _: self._free(key)), kind, size)
        self.now[kind] += size
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()

    def _free(self, key: int) -> None:
        _, kind, size = self._storages.pop(key)
        self.now[kind] -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten._local_scalar_dense.default:  # only masks are asked: "all true?"
            return not self.padded
        if function is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            result = args[0].flatten(0, args[1][0].dim() - 1).clone()
        else:
            result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                wide = tensor.dim() > 0 and tensor.shape[-1] == self.vocabulary
                self._count(tensor, "logits" if wide else "activations")
        return result


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    output: Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return output


class _FusedAttention(torch.autograd.Function):
    """Fused attention keeps queries, keys, values, output and one number a row, never the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        normaliser = query.new_empty(batch, heads, length, dtype=torch.float32)
        if mask is not None and mask.dtype == torch.bool:
            mask = mask.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, normaliser, mask)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        workspace = [query.new_empty(query.shape, dtype=torch.float32)]
        if key.shape[1] != query.shape[1]:  # gradients of shared heads are made one by one, then added
            workspace += [torch.empty_like(query), torch.empty_like(query)]
        return (*grads, None)


def _compute_dtype(config: ModelConfig, target: str) -> torch.dtype:
    if target == "cuda" and not torch.cuda.is_available():  # a card of another machine: one that has bfloat16
        return torch.float32 if config.compute_dtype == "float32" else torch.bfloat16
    return compute_dtype(config)


def _attention(config: ModelConfig, dtype: torch.dtype, target: str) -> str | None:
    if target == "cpu" and config.attn_implementation != "flash_attention_2":  # which no CPU has
        return attention(config, dtype)
    return "eager" if config.attn_implementation == "eager" else None  # all fused ones keep the same


def _quantised_forward(layer: Any, x: Tensor) -> Tensor:
    compute = getattr(layer, "compute_dtype", None) or x.dtype
    four_bits = isinstance(layer, bnb.nn.Linear4bit)
    shape = (layer.out_features, layer.in_features)
    output: Tensor = _Quantised.apply(x.to(compute), shape, layer.bias, four_bits)
    return output.to(x.dtype)


class _Quantised(torch.autograd.Function):
    """bitsandbytes' MatMul4Bit and MatMul8bitLt: the weight is dequantised whole, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], bias: Tensor | None, four_bits: bool) -> Tensor:
        ctx.shape = shape
        if not four_bits:
            ctx.x = x
            if x.device.type != "cpu":
                half = x.to(torch.float16)
                quantised = half.to(torch.int8)
                del half
                return x.new_empty(*quantised.shape[:-1], shape[0])
        return F.linear(x, x.new_empty(shape), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ grad.new_empty(ctx.shape), None, None, None


def _scalar_head(head: nn.Linear, hidden: Tensor) -> Tensor:
    return F.linear(hidden.float(), head.weight)


def stored_bytes(model: nn.Module, config: ModelConfig) -> dict[str, int]:
    """Bytes that a model's parameters and buffers take once loaded: those of quantised layers, and the others.

    NF4 (Dettmers et al. 2023): half a byte a weight and a float32 maximum for each block of 64, which double
    quantisation stores in a byte, with a float32 for each 256 of them.
    """
    sizes: Counter[str] = Counter()
    quantised: set[int] = set()
    for module in model.modules():
        if isinstance(module, QUANTISED):
            count = module.in_features * module.out_features
            quantised.add(id(module.weight))
            if config.quantization == "int8":
                sizes["quantised"] += count + 4 * module.out_features
            else:
                blocks = -(-count // 64)
                nested = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4
                sizes["quantised"] += count // 2 + (nested if config.double_quant else 4 * blocks) + 4 * 16
    for tensor in _unique([*model.parameters(), *model.buffers()]):
        if id(tensor) not in quantised:
            sizes["others"] += tensor.numel() * tensor.element_size()
    return dict(sizes)


def _unique(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return iter({id(tensor): tensor for tensor in tensors}.values())

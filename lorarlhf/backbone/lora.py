"""What a LoRA layer computes, in fewer passes over its activations than PEFT takes."""

from __future__ import annotations

import math
import types
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def use_fused_forward(layer: Any) -> None:
    """Make a PEFT layer (of any quantisation, without dropout) compute `W x + scaling B A x` by `fused_forward`.

    PEFT copies the base layer's output, and scales and adds the update in passes of their own; on CPU it also casts
    the input to the adapter's float32 and the update back, as it looks for autocast on CUDA only.
    """
    layer.forward = types.MethodType(fused_forward, layer)


def fused_forward(layer: Any, x: Tensor) -> Tensor:
    """[..., in] -> [..., out]: base layer and active adapter, if there is one, in the type of autocast."""
    # CUDA's autocast runs LayerNorm in float32. bitsandbytes returns the type it was given, so that from there on
    # activations would be twice as wide, and backward, which knows no autocast, meet two types in one product.
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # the planner's meta has none
        x = x.to(torch.get_autocast_dtype(device))
    result: Tensor = layer.base_layer(x)
    role = next(iter(layer.active_adapters), None)
    if layer.disable_adapters or role not in layer.lora_A:
        return result
    a, b = (matrices[role].weight.to(result.dtype) for matrices in (layer.lora_A, layer.lora_B))
    updated: Tensor = _AddLora.apply(result, x.to(result.dtype), a, b, layer.scaling[role])
    return updated


class _AddLora(torch.autograd.Function):
    """result + scaling * x A^T B^T (Hu et al. 2021, eq. 3), written over `result` where autograd lets it.

    Rounded where PEFT rounds, so that an adapter computes the same in plain PEFT, to the last bit.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        ctx.save_for_backward(rows, low, a, b)
        ctx.scaling = scaling
        # A power of two only moves the exponent, so it may as well be applied on the narrow side.
        is_exact = math.frexp(scaling)[0] == 0.5
        update = (low * scaling) @ b.t() if is_exact else (low @ b.t()).mul_(scaling)
        update = update.view(result.shape)
        if result._is_view():  # what bitsandbytes returns for a layer with a bias: not to be changed in place
            return update.add_(result)
        ctx.mark_dirty(result)
        return result.add_(update)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        d_result = grad.reshape(-1, grad.shape[-1])
        d_low = (d_result @ b).mul_(ctx.scaling)
        dx = (d_low @ a).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[1] else None
        da = d_low.t() @ rows if ctx.needs_input_grad[2] else None
        db = (d_result.t() @ low).mul_(ctx.scaling) if ctx.needs_input_grad[3] else None
        return grad, dx, da, db, None

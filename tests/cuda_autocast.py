"""CUDA's autocast rules on a CPU, so that tests see the types that a GPU would compute in.

Both kinds multiply in the low type. CUDA also has a list of operations that run in float32 and return it, which CPU
autocast lacks: what comes out of a LayerNorm is bfloat16 here and float32 there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map

# The operations of torch's AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE (aten/src/ATen/autocast_mode.h) that a
# language model meets.
IN_FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan softplus layer_norm rms_norm
native_layer_norm group_norm cosine_similarity logsumexp pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar prod
prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm sum sum.dim_IntList
"""
CPU_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


@contextlib.contextmanager
def cuda_autocast_rules() -> Iterator[None]:
    """Inside the block, `torch.autocast("cpu")` does what `torch.autocast("cuda")` does."""
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    for name in IN_FLOAT32.split():
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU"):  # on the CPU's list too
            library.impl(name, _in_float32(operation))
    try:
        yield
    finally:
        library._destroy()


def _in_float32(operation: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(CPU_AUTOCAST):
            return operation(*tree_map(_widen, args), **tree_map(_widen, kwargs))

    return run


def _widen(value: Any) -> Any:
    low = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value

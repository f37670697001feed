"""Recording a piece of GPU work as a CUDA graph, so that a failure leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorarlhf.errors import first_line, is_out_of_memory

FIRST_SOUND_TORCH = "2.12"  # before it, a capture that fails leaves the allocator sending memory to its pool
CAPTURABLE_ATTENTION = ("sdpa", "eager")  # flash attention reads its mask on the host


@dataclass(frozen=True)
class Captured:
    """A graph, and the tensor that a replay writes."""

    graph: Any
    output: Tensor


class CaptureError(RuntimeError):
    """The work cannot be captured, or a replay does something else than the work itself."""


def capture(work: Callable[[], Tensor], rewind: Callable[[], None]) -> Captured:
    """Record `work`, and check that replaying it gives what running it gave.

    Args:
        work: on the GPU alone: a graph holds kernels, and what Python does between them happens once.
        rewind: takes back what a run of `work` has changed, so that each run starts from the same state.

    Raises:
        CaptureError: the thread is on the stream that it came with, as if nothing had been tried.
        RuntimeError: out of memory, in any of its forms.
    """
    before = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):  # the first run may choose algorithms, which a capture must not
        expected = work()
    before.wait_stream(side)
    rewind()
    graph = torch.cuda.CUDAGraph()
    try:
        # torch.cuda.graph ends the capture, then leaves its stream: where the former raises, the latter never comes.
        with torch.cuda.stream(before), torch.cuda.graph(graph):
            output = work()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        rewind()
        # Ending a capture that has failed raises once more: what went wrong is the error before.
        cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
        if is_out_of_memory(cause):
            raise cause from None
        raise CaptureError(first_line(cause)) from error
    rewind()
    if not torch.allclose(output.float(), expected.float(), rtol=0.05, atol=0.05):
        raise CaptureError("a replay differs from a plain run")
    return Captured(graph, output)

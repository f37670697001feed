"""Memory: what this process has used at most, and what there is for it."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

# What the GPU's driver keeps for a process, beside what torch allocates and reports.
CUDA_CONTEXT = 2**29


def accelerator() -> torch.device | None:
    """What torch computes on beside the CPU: CUDA (and ROCm, which torch calls so), XPU, MPS; None if there is none."""
    return torch.accelerator.current_accelerator(check_available=True)


def peak_memory_bytes() -> int:
    """Peak of the GPU's allocated memory, or of the process's resident memory where no GPU has memory of its own."""
    gpu = _gpu()
    return int(gpu.max_memory_allocated()) if gpu else _peak_resident()


def total_memory_bytes() -> int:
    """Of the GPU as far as this process may use it, or of the machine (or container) where no GPU has its own."""
    gpu = _gpu()
    if gpu:
        return _allowed(gpu) + CUDA_CONTEXT
    total: int = psutil.virtual_memory().total
    return min(total, _container_limit() or sys.maxsize)


def available_memory_bytes() -> int:
    """What this process could come to hold in all, as things are: what it holds and what is free."""
    gpu = _gpu()
    if gpu:
        free, _ = gpu.mem_get_info()
        return int(min(free + gpu.memory_reserved(), _allowed(gpu))) + CUDA_CONTEXT
    available: int = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    return min(available, total_memory_bytes())


def free_unused_memory() -> None:
    """Give back what nothing names any more, and what torch keeps of the accelerator's memory for later."""
    gc.collect()  # models and optimisers lie about in circles: PEFT's wrapper and the model point to each other
    device = accelerator()
    if device:
        torch.get_device_module(device).empty_cache()


def _gpu() -> Any:
    """torch's module for an accelerator with memory of its own; None for CPU and MPS, which share the machine's."""
    device = accelerator()
    return torch.get_device_module(device) if device and device.type in ("cuda", "xpu") else None


def _allowed(gpu: Any) -> int:
    _, total = gpu.mem_get_info()
    fraction = getattr(gpu, "get_per_process_memory_fraction", None)  # XPU knows no share
    return int(total * (fraction() if fraction else 1))


def _peak_resident() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def _container_limit() -> int | None:
    """Bytes that a Linux control group allows, if it limits them."""
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None

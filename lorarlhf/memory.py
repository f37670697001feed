"""Memory: what this process has used at most, and what there is for it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch

# What the GPU's driver keeps for a process, beside what torch allocates and reports.
CUDA_CONTEXT = 2**29


def peak_memory_bytes() -> int:
    """Peak of the GPU's allocated memory, or of the process's resident memory where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def total_memory_bytes() -> int:
    """Of the GPU as far as this process may use it, or of the machine (or container) where there is no GPU."""
    if torch.cuda.is_available():
        return _allowed_on_gpu() + CUDA_CONTEXT
    total: int = psutil.virtual_memory().total
    return min(total, _container_limit() or sys.maxsize)


def available_memory_bytes() -> int:
    """What this process could come to hold in all, as things are: what it holds and what is free."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return min(free + torch.cuda.memory_reserved(), _allowed_on_gpu()) + CUDA_CONTEXT
    available: int = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    return min(available, total_memory_bytes())


def _allowed_on_gpu() -> int:
    _, total = torch.cuda.mem_get_info()
    return int(total * torch.cuda.get_per_process_memory_fraction())


def _container_limit() -> int | None:
    """Bytes that a Linux control group allows, if it limits them."""
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None

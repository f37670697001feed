"""What holds on Windows, macOS and GPUs of every make, as far as a CPU on Linux can tell."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from lorarlhf import memory

# Modules of Python that Windows lacks. Libraries look at the platform's name before they import one, so they are hidden
# from this package alone.
WITHOUT_POSIX = """
import builtins, pkgutil, importlib
hidden = {"resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline", "posix"}
real = builtins.__import__

def without(name, globals=None, *args, **kwargs):
    if name in hidden and (globals or {}).get("__name__", "").startswith("lorarlhf"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return real(name, globals, *args, **kwargs)

builtins.__import__ = without
import lorarlhf
for module in pkgutil.walk_packages(lorarlhf.__path__, "lorarlhf."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_is_imported_where_there_is_no_posix():
    result = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {"lorarlhf.memory", "lorarlhf.cli.main", "lorarlhf.preferences.labels"} <= set(result.stdout.split())


def test_the_peak_of_a_process_on_windows_is_that_of_its_working_set(monkeypatch):
    monkeypatch.setattr(memory, "accelerator", lambda: None)
    monkeypatch.setattr(sys, "platform", "win32")
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=12345))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert memory.peak_memory_bytes() == 12345


def test_the_peak_of_this_process_is_at_least_what_it_holds_now(monkeypatch):
    monkeypatch.setattr(memory, "accelerator", lambda: None)
    holds = psutil.Process().memory_info().rss
    assert 0.9 * holds <= memory.peak_memory_bytes() <= 50 * holds


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_memory_is_that_of_an_accelerator_that_has_its_own(monkeypatch, kind):
    gpu = SimpleNamespace(
        max_memory_allocated=lambda: 3, mem_get_info=lambda: (40, 100), memory_reserved=lambda: 10, empty_cache=None
    )
    if kind == "cuda":
        gpu.get_per_process_memory_fraction = lambda: 0.45
    monkeypatch.setattr(memory, "accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch, "get_device_module", lambda device: {kind: gpu}[device.type])
    assert memory.peak_memory_bytes() == 3
    assert memory.total_memory_bytes() - memory.CUDA_CONTEXT == (45 if kind == "cuda" else 100)
    assert memory.available_memory_bytes() - memory.CUDA_CONTEXT == (45 if kind == "cuda" else 50)


def test_memory_is_the_machines_where_an_accelerator_shares_it(monkeypatch):
    monkeypatch.setattr(memory, "accelerator", lambda: torch.device("mps"))
    shared = memory.total_memory_bytes(), memory.available_memory_bytes()
    monkeypatch.setattr(memory, "accelerator", lambda: None)
    assert shared[0] == memory.total_memory_bytes()
    assert shared[1] == pytest.approx(memory.available_memory_bytes(), rel=0.5)


def test_what_torch_keeps_is_given_back_on_any_accelerator(monkeypatch):
    given = []
    monkeypatch.setattr(memory, "accelerator", lambda: None)
    memory.free_unused_memory()
    monkeypatch.setattr(memory, "accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.xpu, "empty_cache", lambda: given.append("xpu"))
    memory.free_unused_memory()
    assert given == ["xpu"]

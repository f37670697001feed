"""A real model and comparisons that mean something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "smollm2.py"
OUT_OF_REACH = 69


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct: LORARLHF_SMOLLM2, else the user's cache; it is made there if it is not yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("LORARLHF_SMOLLM2") or cache / "lorarlhf" / "smollm2-135m-instruct")
    if not folder.exists():
        done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True)
        if done.returncode == OUT_OF_REACH:
            pytest.skip(f"{done.stderr.strip().splitlines()[-1]}; or set LORARLHF_SMOLLM2 to a folder with the model")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def comparisons() -> Path:
    """LORARLHF_COMPARISONS, a file of human ones in any form that is read here, else a few written for this test."""
    return Path(os.environ.get("LORARLHF_COMPARISONS") or Path(__file__).with_name("comparisons.jsonl"))

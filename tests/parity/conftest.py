"""TRL 1.12, the last release with a PPOTrainer, beside whatever trl is installed."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trl_environment(tmp_path_factory) -> dict[str, str]:
    """Environment of a process whose `import trl` is TRL 1.12.

    It is the installed one, or the unpacked one that LORARLHF_TRL_112 names, or is fetched for this session.
    """
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    if not version("trl").startswith("1.12."):
        folder = os.environ.get("LORARLHF_TRL_112")
        if not folder:
            folder = str(tmp_path_factory.mktemp("trl-1.12"))
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "trl==1.12.*"]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                pytest.skip(
                    f"TRL 1.12 cannot be had ({reason}); unpack its wheel and set LORARLHF_TRL_112 to the folder"
                )
        paths.append(folder)
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

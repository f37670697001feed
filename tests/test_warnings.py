"""Warnings that come from the package or the tests end a test; those of libraries do not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WARN = "import warnings\n\n\ndef warn():\n    warnings.warn('old', {category}, stacklevel=1)\n"


@pytest.mark.parametrize("category", ["UserWarning", "DeprecationWarning", "FutureWarning"])
def test_warnings_of_ones_own_code_are_errors(tmp_path, category):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests" / "part").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "lorarlhf").mkdir()
    for module in ("lorarlhf/__init__.py", "lorarlhf/module.py", "tests/part/beside.py", "library.py"):
        (tmp_path / module).write_text(WARN.format(category=category))
    (tmp_path / "tests" / "part" / "test_part.py").write_text(
        WARN.format(category=category)
        + "import beside, library, lorarlhf, lorarlhf.module\n"
        + "def test_here(): warn()\n"
        + "def test_beside(): beside.warn()\n"
        + "def test_package(): lorarlhf.warn()\n"
        + "def test_module(): lorarlhf.module.warn()\n"
        + "def test_library(): library.warn()\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA"]
    lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.splitlines()
    outcomes = dict(line.split(" - ")[0].split("::")[::-1] for line in lines if "::test_" in line)
    assert outcomes == {
        "test_here": "FAILED tests/part/test_part.py",
        "test_beside": "FAILED tests/part/test_part.py",
        "test_package": "FAILED tests/part/test_part.py",
        "test_module": "FAILED tests/part/test_part.py",
        "test_library": "PASSED tests/part/test_part.py",
    }

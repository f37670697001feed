"""The part of `benchmarks/faults.py` that takes minutes; kills and writes have tests of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_what_is_promised_of_damage_inputs_requests_and_files_holds(tmp_path):
    out = tmp_path / "faults.json"
    command = [sys.executable, FAULTS, "--out", out, "--inputs", "300", "--probes", "60"]
    done = subprocess.run(
        [*command, "--parts", "damage", "inputs", "server", "adapters"], capture_output=True, text=True
    )
    result = json.loads(out.read_text())
    assert done.returncode == 0, [row["failures"] for row in result["rows"]]
    assert sum(row.get("refused", 0) for row in result["rows"] if row["part"] == "inputs") == 300
    assert sum(row["tried"] for row in result["rows"] if row["part"] == "damage") > 100
    assert str(tmp_path) not in out.read_text()
    before = out.read_text()
    assert subprocess.run([*command, "--parts", "inputs"], capture_output=True).returncode == 0
    assert out.read_text() == before, "what is known is not tried again"

"""The loop on two processes (gloo, on the CPU) does what it does on one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demo_runs import read_jsonl, save_random_adapter, small_recipe, small_sets, untimed
from forked import Forked
from safetensors.torch import load_file

from lorarlhf.run import Run
from lorarlhf.stages.ppo import train_ppo

SETS = (
    *("ppo.iterations=3", "ppo.eval_every=1", "ppo.save_every=1", "ppo.missing_eos_penalty=0.5", "ppo.kl_target=0.05"),
    *("ppo.kl_horizon=50", "ppo.normalize_reward=true", "ppo.early_stop_kl=0.5", "ppo.save_total_limit=null"),
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with data and a run whose reward stage is done."""
    folder = tmp_path_factory.mktemp("processes")
    save_random_adapter(small_recipe(folder), Run(folder / "run"), "reward")
    return folder


def arguments(folder: Path, run: Path, *more: str) -> list[str]:
    """Of `lorarlhf`."""
    sets = [part for text in [*small_sets(folder / "data"), *SETS] for part in ("--set", text)]
    return ["ppo", "--recipe", "demo", "--output-dir", str(run), *sets, *more]


def train_here(folder: Path, name: str, *sets: str, resume: bool = False) -> Path:
    """One process: this one."""
    run = started(folder, name)
    train_ppo(small_recipe(folder, *SETS, *sets), Run(run), resume)
    return run / "ppo"


def started(folder: Path, name: str) -> Path:
    """The folder of a run that is to begin or to go on."""
    if not (folder / name).exists():
        shutil.copytree(folder / "run", folder / name)
    return folder / name


def on_two(folder: Path, name: str, *more: str) -> Path:
    run = started(folder, name)
    forked = Forked(arguments(folder, run, *more), folder / f"{name}-said", 2)
    assert forked.finish() == [0, 0], forked.said("err")[-3000:]
    return run / "ppo"


def under_torchrun(folder: Path, name: str) -> Path:
    """As people launch it: new processes that import everything, which takes longest."""
    run = started(folder, name)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lorarlhf"]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments(folder, run)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run / "ppo"


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    files = [folder / "adapter_model.safetensors", *sorted(folder.glob("checkpoint-3/*/adapter_model.safetensors"))]
    return {f"{file.parent.name}/{name}": x for file in files for name, x in load_file(file).items()}


def assert_same(ours: Path, expected: Path) -> None:
    """Weights, logged numbers and samples, to rounding."""
    assert set(adapters(ours)) == set(adapters(expected))
    for name, x in adapters(expected).items():
        torch.testing.assert_close(
            adapters(ours)[name], x, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    rows, other_rows = (read_jsonl(folder / "metrics.jsonl") for folder in (ours, expected))
    assert [row["iteration"] for row in rows] == [row["iteration"] for row in other_rows] == [0, 1, 1, 2, 2, 3, 3]
    for row, other in zip(rows, other_rows, strict=True):
        assert set(row) == set(other)
        for key, value in untimed(other).items():
            if key == "warnings":
                assert row[key] == value
            elif key not in ("rollout_gap", "padding"):  # of the size of rounding; of each process's own passes
                assert row[key] == pytest.approx(value, rel=2e-3, abs=2e-4), (other["iteration"], key)
    samples, other_samples = (read_jsonl(folder / "samples.jsonl") for folder in (ours, expected))
    assert [row["response"] for row in samples] == [row["response"] for row in other_samples]
    assert [row["prompt"] for row in samples] == [row["prompt"] for row in other_samples]


@pytest.fixture(scope="module")
def alone(start):
    """What one process makes of the run."""
    return train_here(start, "one")


def test_two_processes_do_what_one_does(start, alone):
    two = under_torchrun(start, "two")
    assert_same(two, alone)
    assert json.loads((two / "summary.json").read_text())["iterations"] == 3


def test_two_processes_stop_together(start):
    """One that went on would wait for the other for ever."""
    sets = ("ppo.stop_when.kl=1e-3", "ppo.learning_rate=0.01", "ppo.iterations=8")  # an early estimate may be negative
    two = on_two(start, "two-stopped", *(part for text in sets for part in ("--set", text)))
    summary = json.loads((two / "summary.json").read_text())
    rows = [row for row in read_jsonl(two / "metrics.jsonl") if "kl" in row]
    assert [row["kl"] > 1e-3 for row in rows] == [False] * (len(rows) - 1) + [True]
    assert (summary["iterations"], len(rows) < 8) == (len(rows), True)
    assert "ppo.stop_when.kl 0.001" in summary["stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_two_processes_do_what_one_does_without_a_critic(start, estimator):
    setting = f"ppo.advantage_estimator={estimator}"
    assert_same(on_two(start, f"two-{estimator}", "--set", setting), train_here(start, f"one-{estimator}", setting))


@pytest.fixture(scope="module")
def killed(start):
    """A run of two processes, killed after its first checkpoint."""
    run = started(start, "killed")
    forked = Forked(arguments(start, run), start / "killed-said", 2)
    forked.wait_for((run / "ppo" / "checkpoint-1").is_dir)
    forked.kill()
    assert not (run / "ppo" / "checkpoint-3").exists()
    return run


def test_killed_on_two_processes_and_resumed_on_one(start, alone, killed):
    shutil.copytree(killed, start / "resumed-on-one")
    assert_same(train_here(start, "resumed-on-one", resume=True), alone)


@pytest.mark.slow
def test_killed_and_resumed_on_two_processes(start, alone, killed):
    shutil.copytree(killed, start / "resumed-on-two")
    assert_same(on_two(start, "resumed-on-two", "--resume"), alone)


def test_what_fails_in_one_process_fails_in_all_with_one_line(start, tmp_path):
    """Here a reward function of one process; without an exchange the other would wait for ever."""
    (tmp_path / "broken.py").write_text(
        "import os\n"
        "def scores(prompts, responses):\n"
        "    return [0.0] * (len(responses) - (os.environ['RANK'] == '1'))\n"
    )
    run = tmp_path / "run"
    shutil.copytree(start / "run", run)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    sets = ["--set", 'ppo.reward_functions=["broken:scores"]', "--set", "requires=[broken]"]
    wrong = arguments(start, run, *sets)
    forked = Forked(wrong, tmp_path / "said", 2, PYTHONPATH=path)
    assert forked.finish(200) == [2, 2], "each ends by itself"
    assert "broken:scores must return " in forked.said("err").splitlines()[-1]
    assert forked.said("err", rank=1) == ""

"""Is a stage that was killed and resumed the stage that was never killed, bit for bit? One JSON object on stdout.

    python benchmarks/kills.py --stage reward --kills 40
    python benchmarks/kills.py --stage ppo --estimator grpo --kills 40 --out kills-grpo.json
    python benchmarks/kills.py --stage sft --kills 10 --processes 2

The stage runs once to its end on the demo's model, then again for each kill: SIGKILL at a random moment between the
first logged row and the end, `--resume`, and so on until it ends, killed up to `--times` times. Compared are the final
adapter, byte by byte, and summary, metrics and samples but for what the clock has written into them. Several processes
add up in another order after a resume, so theirs are compared to rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import load_file

from lorarlhf.manifest import numbered_checkpoints

CLOCK = ("seconds", "tokens_per_second", "peak_memory", "runtime", "per_second")
SUPERVISED = {  # rows are logged at other steps than checkpoints are written, and the last step is of neither
    "max_steps": 11,
    "logging_steps": 2,
    "save_steps": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": "false",
}
FEW_PAIRS = ("data.preferences=shipped:demo/preferences_test.jsonl", "data.preferences_test=null", "data.test_size=0.1")
PPO = {
    "iterations": 5,
    "batch_size": 8,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "response_length": 12,
    "eval_prompts": 4,
    "eval_every": 2,
    "save_every": 1,
    "kl_target": 0.5,
    "kl_horizon": 64,
    "normalize_reward": "true",
}


class Stage:
    """The command that is killed, and what it leaves.

    Args:
        work: folder for all of its runs.
    """

    def __init__(self, name: str, estimator: str, processes: int, work: Path) -> None:
        self.name, self.processes, self.work = name, processes, work
        settings: dict[str, Any] = PPO if name == "ppo" else SUPERVISED
        sets = [*FEW_PAIRS, *(f"{name}.{key}={value}" for key, value in settings.items())]
        if name == "ppo":
            sets.append(f"ppo.advantage_estimator={estimator}")
            if estimator != "gae":
                sets.append("ppo.num_generations=4")
        self.options = [part for text in sets for part in ("--set", text)]
        self.start = work / "start"  # what the stage finds in its run
        self.start.mkdir()
        if name == "ppo":
            rewards = [*FEW_PAIRS, *(f"reward.{key}={value}" for key, value in SUPERVISED.items())]
            rewards = [part for text in rewards for part in ("--set", text)]
            subprocess.run(self._command("reward", self.start, rewards, 1), check=True, **_quiet(work / "reward.log"))

    def run(self, name: str) -> Path:
        """A new run, in which the stage has not begun."""
        shutil.copytree(self.start, self.work / name)
        return self.work / name

    def popen(self, run: Path, *options: str) -> subprocess.Popen[bytes] | Forked:
        """The stage, started; in a process group of its own, so that all of its processes can be killed at once."""
        command = self._command(self.name, run, [*self.options, *options], self.processes)
        if self.processes == 1:
            return Forked(command[3:], run / "log")  # what comes after `python -m lorarlhf`
        return subprocess.Popen(command, start_new_session=True, **_quiet(run / "log"))

    def finish(self, run: Path, *options: str) -> None:
        """The stage to its end."""
        process = self.popen(run, *options)
        if process.wait() != 0:
            raise RuntimeError(f"{self.name} ended with {process.returncode}: {(run / 'log').read_text()[-2000:]}")

    def rows(self, run: Path) -> int:
        """Rows logged so far."""
        metrics = run / self.name / "metrics.jsonl"
        return metrics.read_text(encoding="utf-8").count("\n") if metrics.is_file() else 0

    def has_checkpoint(self, run: Path) -> bool:
        return bool(numbered_checkpoints(run / self.name))  # not what was still being written

    def differences(self, expected: Path, actual: Path) -> list[str]:
        """What the stage has left in one run and not in the other."""
        found = []
        adapters = [run / self.name / "adapter_model.safetensors" for run in (expected, actual)]
        if self.processes == 1:
            same = adapters[0].read_bytes() == adapters[1].read_bytes()
        else:
            tensors = [load_file(path) for path in adapters]
            same = all(abs(tensors[0][key] - tensors[1][key]).max() < 1e-5 for key in tensors[0])
        if not same:
            found.append("adapter")
        for name in ("summary.json", "metrics.jsonl", "samples.jsonl"):
            one, other = (_untimed(run / self.name / name) for run in (expected, actual))
            if not _equal(one, other, exactly=self.processes == 1):
                found.append(name)
        return found

    def _command(self, stage: str, run: Path, options: list[str], processes: int) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        modules = [*(launcher if processes > 1 else []), "-m", "lorarlhf"]
        return [sys.executable, *modules, stage, "--recipe", "demo", "--output-dir", str(run), *options]


class Forked:
    """A command of lorarlhf in a process that is forked from one with all libraries imported, which takes seconds."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lorarlhf.stages.sft", "lorarlhf.stages.reward", "lorarlhf.stages.ppo"])

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.process = self.context.Process(target=run_command, args=(arguments, log))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode


def run_command(arguments: list[str], log: Path) -> None:
    """What `lorarlhf ARGUMENTS` does, its output in a file."""
    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["lorarlhf", *arguments]
    from lorarlhf.cli.main import main

    main()


def _quiet(log: Path) -> dict[str, Any]:
    return {"stdout": log.open("ab"), "stderr": subprocess.STDOUT, "env": os.environ | {"OMP_NUM_THREADS": "1"}}


def _untimed(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.split("\n")[:-1]]
    return [{key: value for key, value in row.items() if not any(part in key for part in CLOCK)} for row in rows]


def _equal(one: Any, other: Any, exactly: bool) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key], exactly) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_equal(a, b, exactly) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float) and not exactly:
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
    return bool(one == other)


def killed_once(stage: Stage, run: Path, draw: random.Random, seconds: float) -> bool:
    """Start or resume the stage and kill it; False if it had ended before.

    Args:
        seconds: from the first new row to the end, when nothing interrupts.
    """
    before = stage.rows(run)
    process = stage.popen(run, *(["--resume"] if stage.has_checkpoint(run) else []))
    # A stage that begins anew, or goes on from a checkpoint, first takes rows away, then adds to them.
    log_began = time.perf_counter()
    while process.poll() is None and stage.rows(run) in (0, before) and time.perf_counter() - log_began < 120:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, seconds))
    if process.poll() is not None:
        if process.returncode != 0:
            raise RuntimeError(f"{stage.name} ended with {process.returncode}: {(run / 'log').read_text()[-2000:]}")
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def measure(
    name: str,
    estimator: str,
    kills: int,
    times: int,
    processes: int,
    seed: int,
    work: Path,
    told: Callable[[int], None] = lambda killed: None,
) -> dict[str, Any]:
    """The object that is printed: how many runs of so many kills came out as if there had been none.

    Args:
        times: most kills of one run.
        work: an empty folder.
        told: gets the kills so far.
    """
    draw, killed, trials, ended_before = random.Random(seed), 0, 0, 0
    differences: list[dict[str, Any]] = []
    stage = Stage(name, estimator, processes, work)
    expected = stage.run("expected")
    process = stage.popen(expected)
    while process.poll() is None and not stage.rows(expected):
        time.sleep(0.01)
    first_row = time.perf_counter()
    if process.wait() != 0:
        raise RuntimeError((expected / "log").read_text()[-2000:])
    seconds = time.perf_counter() - first_row
    while killed < kills:
        run, in_this = stage.run(f"run-{trials}"), 0
        for _ in range(draw.randint(1, min(times, kills - killed))):
            if not killed_once(stage, run, draw, seconds):
                ended_before += 1
                break
            in_this += 1
        if in_this and not (run / name / "summary.json").is_file():
            stage.finish(run, *(["--resume"] if stage.has_checkpoint(run) else []))
        if different := stage.differences(expected, run):
            differences.append({"run": trials, "kills": in_this, "differ": different})
        killed, trials = killed + in_this, trials + 1
        shutil.rmtree(run)
        told(killed)
    return {
        "stage": name,
        **({"advantage_estimator": estimator} if name == "ppo" else {}),
        "processes": processes,
        "kills": killed,
        "runs": trials,
        "ended_before_the_kill": ended_before,
        "identical": trials - len(differences),
        "differences": differences,
        "seed": seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=["sft", "reward", "ppo"], required=True)
    parser.add_argument("--estimator", choices=["gae", "rloo", "grpo"], default="gae", help="ppo.advantage_estimator")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--times", type=int, default=3, help="most kills of one run")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="write the object to this file too")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(args.stage, total=args.kills)
        measured = measure(
            args.stage,
            args.estimator,
            args.kills,
            args.times,
            args.processes,
            args.seed,
            Path(folder),
            lambda killed: progress.update(task, completed=killed),
        )
    result = json.dumps(measured, indent=1)
    print(result)
    if args.out:
        args.out.write_text(result + "\n", encoding="utf-8")
    sys.exit(bool(measured["differences"]))


if __name__ == "__main__":
    main()

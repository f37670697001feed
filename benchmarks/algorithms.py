"""PPO, RLOO and GRPO on the demo, at the same number of responses: a row a run, and means, as one JSON object.

    python benchmarks/algorithms.py --out benchmarks/results/algorithms-demo-cpu.json

Each run is a process of its own, so that its peak of memory is its own. Rows are written as soon as they are known;
runs that the file already holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.progress import track

from lorarlhf.display import read_rows

T_975 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's distribution, by the number of seeds
NAMES = ("accuracy", "gold", "win_rate", "fluent", "kl", "reward", "seconds_an_iteration", "peak_memory_gb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", nargs="+", default=["gae", "rloo", "grpo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--generations", type=int, default=4, help="responses to a prompt, of rloo and grpo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["runs"] if args.out.is_file() else []
    done = {(row["estimator"], row["seed"]) for row in rows}
    todo = [(name, seed) for seed in args.seeds for name in args.estimators if (name, seed) not in done]
    for estimator, seed in track(todo, "runs", console=Console(stderr=True)):
        sets = [*args.set, f"ppo.advantage_estimator={estimator}"]
        if estimator != "gae":
            sets.append(f"ppo.num_generations={args.generations}")
        rows.append({"estimator": estimator, "seed": seed, **run(seed, sets)})
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(table(rows), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table(rows)["means"], indent=1))


def run(seed: int, sets: Sequence[str]) -> dict[str, float]:
    """One demo. What counts is the policy that it keeps; times and memory are of PPO's iterations."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lorarlhf", "demo", "--output-dir", f"{folder}/run", "--seed", str(seed)]
        options = [part for text in sets for part in ("--set", text)]
        finished = subprocess.run(
            [*command, *options], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
        )
        if finished.returncode:
            sys.exit(finished.stderr[-2000:])
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        metrics = read_rows(Path(folder, "run", "ppo", "metrics.jsonl"), "iteration")
    iterations = [row for row in metrics if "seconds_update" in row]
    seconds = [sum(value for key, value in row.items() if key.startswith("seconds_")) for row in iterations]
    return {
        "accuracy": summary["reward"]["eval_accuracy"],
        "gold": summary["gold"]["after"],
        "win_rate": summary["gold"]["win_rate"],
        "fluent": summary["fluent_fraction"],
        "kl": summary["ppo"]["kl"],
        "reward": summary["ppo"]["reward_after"],
        "seconds_an_iteration": mean(seconds),
        "steps": iterations[-1]["step"],
        "peak_memory_gb": iterations[-1]["peak_memory_gb"],
        "seconds": summary["seconds"],
    }


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs, and of each algorithm the mean of each figure with half its 95% interval over seeds."""
    means: dict[str, dict[str, list[float | None]]] = {}
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        of = [row for row in rows if row["estimator"] == estimator]
        means[estimator] = {name: interval([row[name] for row in of]) for name in NAMES}
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return {"means": means, "runs": rows, "threads": threads, "device": "cpu", "versions": versions}


def interval(values: Sequence[float]) -> list[float | None]:
    """Mean, and half the width of Student's 95% interval; None of a single value."""
    if len(values) < 2:
        return [round(mean(values), 4), None]
    half = T_975[len(values)] * stdev(values) / len(values) ** 0.5
    return [round(mean(values), 4), round(half, 4)]


if __name__ == "__main__":
    main()

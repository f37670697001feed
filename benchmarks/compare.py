"""Two ways to run benchmarks/ppo.py (or stages.py), in turn, A B A B: ratios with their spread, as JSON on stdout.

    LORARLHF_TRL_112=FOLDER python benchmarks/compare.py --a "--engine lorarlhf" --b "--engine trl" -- --model cpu
    python benchmarks/compare.py --script stages.py --a "--engine lorarlhf" --b "--engine trl" -- --stage sft ...

What follows `--` goes to both. Machines are noisy, so nothing is compared but neighbours in time: a round is one run of
each, and a ratio is A over B of one round. FOLDER holds an unpacked TRL 1.12, if the installed trl has no PPO.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", choices=["ppo.py", "stages.py"], default="ppo.py")
    parser.add_argument("--a", default="--engine lorarlhf", help="options of the script")
    parser.add_argument("--b", default="--engine trl")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the object to this file too")
    parser.add_argument("common", nargs="*", help="options of the script for both")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    for _ in range(args.rounds):
        for name in runs:
            runs[name].append(measure(HERE / args.script, shlex.split(getattr(args, name)) + args.common))
            print(name, json.dumps(runs[name][-1]["seconds"]), file=sys.stderr, flush=True)
    ratios = {
        "seconds_an_iteration": spread(runs, lambda run: run["seconds_an_iteration"]),
        **{
            f"seconds_{phase}": spread(runs, lambda run, phase=phase: run["seconds"][phase])
            for phase in runs["a"][0]["seconds"]
            if phase in runs["b"][0]["seconds"]
        },
        "peak_memory_gb": spread(runs, lambda run: run["peak_memory_gb"]),
    }
    result = json.dumps({"a": args.a, "b": args.b, "ratios_a_over_b": ratios, "runs": runs}, indent=1)
    print(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(result + "\n", encoding="utf-8")


def measure(script: Path, options: list[str]) -> dict[str, Any]:
    """One run in a process of its own."""
    return outcomes([str(script), *options])[-1]


def outcomes(command: list[str]) -> list[dict[str, Any]]:
    """The objects that a Python command prints, each on a line of its own: as many as it starts processes."""
    environment = dict(os.environ)
    if "trl" in command and "LORARLHF_TRL_112" in environment:
        paths = [environment["LORARLHF_TRL_112"], environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def spread(runs: dict[str, list[dict[str, Any]]], value: Any) -> dict[str, float]:
    """Median, least and greatest of the rounds' ratios."""
    ratios = [value(a) / value(b) for a, b in zip(runs["a"], runs["b"], strict=True)]
    return {"median": round(median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}


if __name__ == "__main__":
    main()

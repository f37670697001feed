"""Where an iteration's time goes, by operation: shares of each phase as torch's profiler sees them, as JSON on stdout.

    python benchmarks/ops.py -- --model cpu --algorithm rloo --dtype float32 --top-layers 0.5

What follows `--` goes to benchmarks/ppo.py, of which the second iteration is profiled.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import ppo
from torch.profiler import ProfilerActivity, profile

from lorarlhf.generation import sample
from lorarlhf.rl import loop

PHASES = {"rollout": (sample, "_decode"), "score": (loop, "score"), "update": (loop, "update")}
SHOWN = 12  # operations of each phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help="of ppo.py")
    args = parser.parse_args()
    profiles: dict[str, profile] = {}
    for phase, (module, name) in PHASES.items():
        setattr(module, name, profiled(getattr(module, name), phase, profiles))
    sys.argv = ["ppo.py", *args.options, "--iterations", "1"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ppo.main()
    shares = {phase: shares_of(found) for phase, found in profiles.items()}
    about = json.loads(said.getvalue().splitlines()[-1])
    kept = ("model", "algorithm", "dtype", "quantization", "top_layers", "device", "threads", "versions")
    print(json.dumps({"shares": shares, **{key: about[key] for key in kept}}, indent=1))


def profiled(function: Callable[..., Any], phase: str, profiles: dict[str, profile]) -> Callable[..., Any]:
    """The function, profiled the second time that it is called: the first is to warm up."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != 2:
            return function(*args, **kwargs)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            result = function(*args, **kwargs)
        profiles[phase] = found
        return result

    return call


def shares_of(found: profile) -> dict[str, float]:
    """The share of the phase's own time that each operation takes, the greatest first."""
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    greatest = sorted(events, key=lambda event: event.self_cpu_time_total, reverse=True)[:SHOWN]
    return {event.key: round(event.self_cpu_time_total / total, 3) for event in greatest}


if __name__ == "__main__":
    main()

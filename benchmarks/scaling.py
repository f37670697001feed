"""How time and memory grow with batch, response length and model size: one JSON object on stdout.

    python benchmarks/scaling.py                                    # a CPU's sizes
    python benchmarks/scaling.py --models qwen2.5-0.5b qwen2.5-1.5b qwen2.5-3b qwen2.5-7b --batches 8 16 32 64 \\
        --responses 128 256 512 1024 --gradient-checkpointing      # a GPU's

One of the three is varied at a time, the others keep the first value given.
"""

from __future__ import annotations

import argparse
import json
import sys

from compare import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["lorarlhf", "trl"], default="lorarlhf")
    parser.add_argument("--models", nargs="+", default=["cpu"])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--responses", type=int, nargs="+", default=[32, 64, 128])
    args, rest = parser.parse_known_args()
    points = {
        "model": [(model, args.batches[0], args.responses[0]) for model in args.models],
        "batch": [(args.models[0], batch, args.responses[0]) for batch in args.batches],
        "response": [(args.models[0], args.batches[0], response) for response in args.responses],
    }
    measured: dict[tuple[str, int, int], dict[str, object]] = {}
    for point in dict.fromkeys(point for line in points.values() for point in line):
        model, batch, response = point
        options = ["--engine", args.engine, "--model", model, "--batch", str(batch), "--response", str(response)]
        run = measure([*options, *rest])
        kept = ("seconds", "seconds_an_iteration", "tokens_per_second", "peak_memory_gb", "device", "threads")
        measured[point] = {"model": model, "batch": batch, "response": response, **{key: run[key] for key in kept}}
        print(json.dumps(measured[point]), file=sys.stderr, flush=True)
    print(json.dumps({name: [measured[point] for point in line] for name, line in points.items()}, indent=1))


if __name__ == "__main__":
    main()

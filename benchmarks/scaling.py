"""How time and memory grow with batch, response length, group size, model and processes; and what is planned.

    python benchmarks/scaling.py --out OUT.json                                     # a CPU's sizes
    python benchmarks/scaling.py --out OUT.json --models qwen2.5-7b qwen2.5-1.5b qwen2.5-14b --batches 32 8 16 64 \\
        --responses 256 128 512 -- --algorithm rloo --gradient-checkpointing        # a GPU's
    python benchmarks/scaling.py --out OUT.json --plan                              # by the planner: no GPU, no model
    python benchmarks/scaling.py --out OUT.json --plot docs/growth.svg

One of the five is varied at a time, the others keep the first value given. Each run is a process of its own, or as many
as `--processes` says, which exchange by gloo on a CPU; what OUT.json has is not run again. What follows `--` goes to
benchmarks/ppo.py in place of RLOO in float32, timed in the processor's time of a process of one thread, in which work
beside it counts for little.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compare import HERE, outcomes
from random_models import architecture, weights

from lorarlhf.planner.plan import Planner
from lorarlhf.recipe.sections import DataConfig, ModelConfig, PPOConfig, Recipe

OPTIONS = "--algorithm rloo --dtype float32 --top-layers 0.5 --minibatches 2 --iterations 1 --processor-time"
KEPT = ("seconds", "seconds_an_iteration", "peak_memory_gb", "planned_peak_gb")
PLANNED = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b")
BUDGETS = (512, 2048, 4096)  # tokens of a micro-batch: one, four and eight of the planned sequences


@dataclass(frozen=True)
class Point:
    """What is run. `batch` counts the responses of all processes, `generations` those to one prompt."""

    model: str
    batch: int
    response: int
    generations: int
    processes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", dest="model", nargs="+", default=["cpu", "cpu-small", "cpu-large"])
    parser.add_argument("--batches", dest="batch", type=int, nargs="+", default=[16, 8, 32, 64])
    parser.add_argument("--responses", dest="response", type=int, nargs="+", default=[64, 32, 128, 256])
    parser.add_argument("--generations", type=int, nargs="+", default=[4, 2, 8])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--times", type=int, default=2, help="runs of each point")
    parser.add_argument("--plan", action="store_true", help="plan instead")
    parser.add_argument("--plot", type=Path, help="draw what there is instead, and print it as tables")
    parser.add_argument("options", nargs="*", default=shlex.split(OPTIONS), help="of ppo.py")
    args = parser.parse_args()
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if args.plot:
        from growth_figure import draw, tables  # which need matplotlib

        args.plot.write_text(draw(results), encoding="utf-8")
        print(tables(results))
    elif args.plan:
        results["planned"] = [row for name in PLANNED for row in planned(name)]
        write(args.out, results)
    else:
        axes = {name: getattr(args, name) for name in Point.__annotations__}
        measure(points(axes), args.times, shlex.join(args.options), results, args.out)


def points(axes: dict[str, list[Any]]) -> list[Point]:
    """The first values together, and then each other value in the place of one of them."""
    base = Point(**{name: values[0] for name, values in axes.items()})
    return [base, *(replace(base, **{name: value}) for name, values in axes.items() for value in values[1:])]


def measure(wanted: list[Point], times: int, options: str, results: dict[str, Any], out: Path) -> None:
    """Run what is not in `results` yet, and write it after each run."""
    if results.setdefault("options", options) != options:
        sys.exit(f"{out} was measured with {results['options']!r}; give another --out")
    rows = results.setdefault("measured", [])
    for time in range(times):
        for point in wanted:
            if sum(row["point"] == asdict(point) for row in rows) <= time:
                rows.append({"point": asdict(point), "weights": weights(point.model), **run(point, options, results)})
                write(out, results)
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)


def run(point: Point, options: str, results: dict[str, Any]) -> dict[str, Any]:
    """One run: of several processes the slowest one's seconds and the largest one's memory."""
    shape = {name: str(value) for name, value in asdict(point).items() if name != "processes"}
    command = [str(HERE / "ppo.py"), *(part for name, value in shape.items() for part in (f"--{name}", value))]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(point.processes)]
    found = outcomes([*(launcher if point.processes > 1 else []), *command, *shlex.split(options)])
    assert len(found) == point.processes
    results.update({name: found[0][name] for name in ("device", "threads", "versions")})
    slowest = max(found, key=lambda one: one["seconds_an_iteration"])
    return {name: slowest[name] for name in KEPT} | {"peak_memory_gb": max(one["peak_memory_gb"] for one in found)}


def planned(name: str) -> list[dict[str, Any]]:
    """GB of each phase of PPO on a GPU, by the planner, for each size of a micro-batch."""
    recipe = Recipe(
        model=ModelConfig(name=name, compute_dtype="bfloat16"),
        data=DataConfig(max_prompt_length=256),
        ppo=PPOConfig(
            batch_size=32,
            response_length=256,
            gradient_checkpointing=True,
            optim="paged_adamw_8bit",
            eval_every=0,  # which would decode more than a batch at a time
        ),
    )
    planner, size = Planner(recipe, architecture(name), "cuda"), weights(name)
    rows = []
    for budget in BUDGETS:
        phases = planner.ppo(budget).phases
        sizes = {"weights": phases[0].parts["backbone"], **{phase.name: phase.total for phase in phases}}
        rows.append({"model": name, "weights": size, "budget": budget, "gb": in_gb(sizes)})
    return rows


def in_gb(sizes: dict[str, int]) -> dict[str, float]:
    return {name: round(size / 1e9, 3) for name, size in sizes.items()}


def write(out: Path, results: dict[str, Any]) -> None:
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

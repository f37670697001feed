"""What reward model and critic lose and save with adapters on the top layers only: one JSON object on stdout.

    python benchmarks/top_layers.py                             # the demo, the gold score known
    python benchmarks/top_layers.py --train T --test E   # a reward model on comparisons of people

Each share of the layers is run with each seed; 0 is the head alone, on the bare base model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

from lorarlhf.backbone.adapters import Adapters
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.run import Run
from lorarlhf.stages import pipeline
from lorarlhf.stages.demo import run_demo as demo
from lorarlhf.stages.reward import train_reward


class HeadOnly(Adapters):
    """Adapters of reward model and critic stay as they begin, changing nothing."""

    def parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from self.head(name).parameters() if name in self.heads else super().parameters(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="comparisons to learn from; without it, the demo is run")
    parser.add_argument("--test")
    parser.add_argument("--steps", type=int, default=60, help="of 16 pairs")
    parser.add_argument("--max-length", type=int, default=256, help="longer pairs are left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.0])
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for share in args.shares:
            with tempfile.TemporaryDirectory() as folder:
                run = run_comparisons if args.train else run_demo
                rows.append({"share": share, "seed": seed, **run(args, Path(folder), share, seed)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    names = [name for name in rows[0] if name not in ("share", "seed")]
    summary = {
        str(share): {name: spread([row[name] for row in rows if row["share"] == share]) for name in names}
        for share in args.shares
    }
    print(json.dumps({"summary": summary, "runs": rows}, indent=1))


def spread(values: list[float]) -> list[float]:
    """Mean and standard deviation."""
    return [round(mean(values), 4), round(stdev(values), 4) if len(values) > 1 else 0.0]


def layers(share: float) -> list[str]:
    return [f"lora.{role}.top_layers={share or 0.25}" for role in ("reward", "critic")]


def load(model: ModelConfig, share: float) -> SharedBackbone:
    backbone = load_backbone(model)
    if not share:
        backbone.adapters.__class__ = HeadOnly
    return backbone


def run_demo(args: argparse.Namespace, folder: Path, share: float, seed: int) -> dict[str, float]:
    pipeline.load_backbone = lambda model, data: load(model, share)
    # The critic would copy the reward model's shape by itself, but a recipe that names it makes a fresh one.
    summary = demo(folder, seed, (layers(share)[0],))
    seconds = {
        stage: json.loads((folder / stage / "summary.json").read_text())["seconds"] for stage in ("reward", "ppo")
    }
    return {
        "accuracy": summary["reward"]["eval_accuracy"],
        "gold_after": summary["gold"]["after"],
        "win_rate": summary["gold"]["win_rate"],
        "fluent": summary["fluent_fraction"],
        "kl": summary["ppo"]["kl"],
        "reward_seconds": seconds["reward"],
        "ppo_seconds": seconds["ppo"],
    }


def run_comparisons(args: argparse.Namespace, folder: Path, share: float, seed: int) -> dict[str, float]:
    sets = [
        f"seed={seed}",
        layers(share)[0],
        f"data.preferences={args.train}",
        f"data.preferences_test={args.test}",
        "data.on_bad_row=skip",
        f"data.max_length={args.max_length}",
        "reward.per_device_train_batch_size=16",
        f"reward.max_steps={args.steps}",
    ]
    recipe = load_recipe("demo", sets=sets)
    summary = train_reward(recipe, Run(folder), backbone=load(recipe.model, share))
    names = {"accuracy": "eval_accuracy", "loss": "eval_loss", "pairs": "eval_examples", "seconds": "seconds"}
    return {name: summary[key] for name, key in names.items()}


if __name__ == "__main__":
    main()

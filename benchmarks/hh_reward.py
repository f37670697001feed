"""What a reward model learns of people's comparisons, and what each setting changes: a row a setting and seed, as JSON.

    python benchmarks/hh_reward.py --model FOLDER --train train.jsonl --test test.jsonl --folder runs/hh --out hh.json

The main rows learn from all comparisons that are short enough and are judged on all of the test file; the others differ
from `default` in one thing each, learn from 1,500, and are judged on the same 1,000. Of each row the JSON also holds
which test pairs it got right, so that settings are compared pair by pair. Rows that are there are not run again: a
stopped run goes on, and `--rows` may name more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from top_layers import load
from transformers import AutoTokenizer

from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.data.tokenized import preference_examples
from lorarlhf.evaluation.reward_model import score_tokens
from lorarlhf.intervals import bootstrap, wilson
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.run import Run
from lorarlhf.stages.export import export_run
from lorarlhf.stages.reward import train_reward
from lorarlhf.stages.sft import train_sft
from lorarlhf.training.baselines import bag_of_words
from lorarlhf.training.objectives import OBJECTIVES
from lorarlhf.training.reward_metrics import longer_wins, preference_metrics, reliability, share_won

LONGEST = 120  # tokens of a transcript; the chat template and its system prompt make it 160
SIDE = (1500, 1000)  # pairs to learn from and to be judged on, of all rows but the main ones
COMMON = (
    *("model.quantization=none", "model.compute_dtype=float32", "lora.r=16", "lora.alpha=32", "data.max_length=192"),
    *("data.test_split=none", "data.test_size=0", "data.max_examples=null", "data.eval_examples=null"),
    *("reward.num_train_epochs=1", "reward.max_steps=-1"),
    *("reward.learning_rate=2e-4", "reward.warmup_steps=10", "reward.center_rewards_coefficient=0.01"),
    *("reward.per_device_train_batch_size=8", "reward.gradient_accumulation_steps=2", "reward.save_steps=10000"),
)
ROWS: dict[str, tuple[str, ...]] = {
    "main": ("reward.learning_rate=4e-4",),  # the best of those below
    "default": (),
    "rate 5e-5": ("reward.learning_rate=5e-5",),
    "rate 1e-4": ("reward.learning_rate=1e-4",),
    "rate 4e-4": ("reward.learning_rate=4e-4",),
    "rate 1e-3": ("reward.learning_rate=1e-3",),
    "all layers": ("lora.reward.top_layers=1.0",),
    "upper quarter": ("lora.reward.top_layers=0.25",),
    "head only": (),
    "rank 4": ("lora.r=4", "lora.alpha=8"),
    "rank 64": ("lora.r=64", "lora.alpha=128"),
    "label smoothing 0.1": ("reward.label_smoothing=0.1",),
    "two epochs": ("reward.num_train_epochs=2",),
    "bfloat16": ("model.compute_dtype=bfloat16",),
    "nf4": ("model.quantization=nf4",),
    "from sft": (),
}
SFT = (
    *("sft.max_steps=-1", "sft.num_train_epochs=1", "sft.learning_rate=2e-4", "sft.warmup_steps=10"),
    *("sft.per_device_train_batch_size=8", "sft.gradient_accumulation_steps=2", "sft.save_steps=10000"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub id or folder")
    parser.add_argument("--train", type=Path, required=True, help="comparisons as JSON lines, unpacked")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = json.loads(args.out.read_text())["runs"] if args.out.is_file() else []
    done = {(run["row"], run["seed"]) for run in runs}
    for seed in args.seeds:
        for row in args.rows:
            if (row, seed) not in done:
                runs.append({"row": row, "seed": seed, **one(args, row, seed)})
                args.out.write_text(json.dumps(table(args, runs), indent=1) + "\n", encoding="utf-8")


def one(args: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """Train with one setting and judge: accuracy, its interval, and the pairs that were right as hexadecimal bits."""
    limits = (None, None) if row == "main" else SIDE
    train, test = (subset(args, name, limit) for name, limit in zip(("train", "test"), limits, strict=True))
    sets = (f"seed={seed}", f"model.name={args.model}", f"data.preferences={train}", *COMMON, *ROWS[row])
    recipe = load_recipe("smollm2-135m-cpu", sets=sets)
    if row == "from sft":
        recipe = recipe.model_copy(update={"model": after_sft(args, train, seed)})
    layers = recipe.lora.for_role("reward").top_layers
    backbone = load(recipe.model, 0 if row == "head only" else layers)
    start = time.perf_counter()
    run = Run(args.folder / f"{row.replace(' ', '-')}-{seed}")
    if summary := run.read_summary("reward"):  # trained, and stopped before it was judged
        backbone.load_role("reward", run.stage("reward"))
    else:
        summary = train_reward(recipe, run, backbone=backbone)
    seconds = time.perf_counter() - start
    learnt = preference_examples(recipe.data, backbone.tokenizer, "train").dataset
    asked = recipe.data.model_copy(update={"preferences_test": str(test)})
    pairs = preference_examples(asked, backbone.tokenizer, "test").dataset
    chosen, rejected = OBJECTIVES["bradley_terry"].scores(pairs, partial(score_tokens, backbone))
    margins = chosen - rejected
    return {
        "pairs": summary["train_examples"],
        "test_pairs": len(pairs),
        **preference_metrics(chosen, rejected),
        "baselines": baselines(learnt, pairs),
        "reliability": reliability(margins),
        "right": np.packbits((margins > 0).numpy()).tobytes().hex(),
        "seconds": round(summary["seconds"]),
        "scoring_seconds": round(time.perf_counter() - start - seconds),
        "peak_gib": round(peak_memory_bytes() / 2**30, 2),  # of this process so far, rows before it included
    }


def after_sft(args: argparse.Namespace, train: Path, seed: int) -> ModelConfig:
    """The model trained on the chosen responses of the same pairs, merged, as the reward model's base."""
    merged = args.folder / f"sft-{seed}-merged"
    if not merged.is_dir():
        run = Run(args.folder / f"sft-{seed}")
        sets = (f"seed={seed}", f"model.name={args.model}", f"data.sft={train}", *COMMON, *SFT)
        train_sft(load_recipe("smollm2-135m-cpu", sets=sets), run)
        export_run(run, merged, "sft", merge=True, dtype="float32")
    return load_recipe("smollm2-135m-cpu", sets=(f"model.name={merged}", *COMMON)).model


def subset(args: argparse.Namespace, name: str, limit: int | None) -> Path:
    """A file of the short pairs, in an order drawn once, or of the first of them."""
    path: Path = args.folder / f"{name}-{limit or 'all'}.jsonl"
    if not path.is_file():
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        lines = [
            line
            for line in getattr(args, name).read_text(encoding="utf-8").split("\n")
            if line and longest(tokenizer, json.loads(line)) <= LONGEST
        ]
        random.Random(0).shuffle(lines)
        path.write_text("\n".join(lines[:limit]) + "\n", encoding="utf-8")
    return path


def longest(tokenizer: Any, row: dict[str, str]) -> int:
    return max(len(tokenizer(row[side])["input_ids"]) for side in ("chosen", "rejected"))


def baselines(train: Dataset, test: Dataset) -> dict[str, float]:
    return {
        "bag_of_words": share_won(bag_of_words(train, test)),
        "longer_wins": longer_wins(test["chosen_ids"], test["rejected_ids"]),
    }


def table(args: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "trl", "bitsandbytes")}
    rows = {row: of_row([run for run in runs if run["row"] == row]) for row in {run["row"]: None for run in runs}}
    return {
        "what": "benchmarks/hh_reward.py; other work ran beside: seconds are upper limits",
        "threads": args.threads,
        "versions": packages,
        "common": COMMON,
        "rows": {row: {**figures, **against_default(runs, row)} for row, figures in rows.items()},
        "runs": runs,
    }


def of_row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy over seeds, and its interval over the pairs of all of them."""
    accuracy = sum(run["eval_accuracy"] for run in runs) / len(runs)
    interval = wilson(accuracy, runs[0]["test_pairs"])  # of the pairs, which are the same for each seed
    return {
        "seeds": [run["seed"] for run in runs],
        "accuracy": round(accuracy, 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "by_seed": [round(run["eval_accuracy"], 4) for run in runs],
        **{name: round(value, 4) for name, value in runs[0]["baselines"].items()},
    }


def against_default(runs: list[dict[str, Any]], row: str) -> dict[str, Any]:
    """By how much a row is more often right than the default on the same pairs, seeds and pairs drawn anew."""
    default = {run["seed"]: bits(run) for run in runs if run["row"] == "default"}
    both = [(bits(run), default[run["seed"]]) for run in runs if run["row"] == row and run["seed"] in default]
    if row in ("main", "default") or not both:
        return {}
    gain = bootstrap(lambda pairs: float(pairs.mean()), np.mean([ours - theirs for ours, theirs in both], axis=0))
    return {"gain": round(gain.value, 4), "gain_interval": [round(gain.low, 4), round(gain.high, 4)]}


def bits(run: dict[str, Any]) -> np.ndarray:
    """[pairs] 1 where a run got the pair right."""
    packed = np.frombuffer(bytes.fromhex(run["right"]), dtype=np.uint8)
    return np.unpackbits(packed)[: run["test_pairs"]].astype(float)


if __name__ == "__main__":
    main()

"""What RL does to a real model by a judge it never saw: PPO, RLOO, GRPO and best-of-n on people's comparisons, as JSON.

    python benchmarks/hh_rl.py --model FOLDER --train train.jsonl --test test.jsonl --folder runs/rl --out rl.json

One half of the comparisons makes the proxy, the reward model that RL climbs; the other half, another seed and adapters
on all layers make the judge. `evaluate --frontier` then draws both over KL, for every checkpoint and for best-of-n. A
step whose files are there is not taken again, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hh_reward import subset
from one_person import lorarlhf, sets

from lorarlhf.display import read_rows

HELD_OUT = 1000  # comparisons of the test file that proxy and judge are judged on
LORA = ("model.quantization=none", "lora.r=16", "lora.alpha=32", "data.max_length=192", "data.test_size=0")
REWARD = (
    *("reward.num_train_epochs=1", "reward.max_steps=-1", "reward.learning_rate=4e-4", "reward.warmup_steps=10"),
    *("reward.per_device_train_batch_size=8", "reward.gradient_accumulation_steps=2", "reward.save_steps=10000"),
    "reward.center_rewards_coefficient=0.01",
)
PPO = (
    *("ppo.batch_size=32", "ppo.num_ppo_epochs=1", "ppo.num_mini_batches=2", "ppo.learning_rate=5e-4"),
    *("ppo.response_length=64", "ppo.missing_eos_penalty=1.0", "ppo.kl_coef=0.05", "data.max_prompt_length=128"),
    *("ppo.micro_batch_tokens=1536", "ppo.eval_every=4", "ppo.eval_prompts=32", "ppo.save_every=4"),
    *("ppo.save_total_limit=null", "ppo.stop_when=null"),
)
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "rloo": ("ppo.advantage_estimator=rloo", "ppo.num_generations=4"),
    "grpo": ("ppo.advantage_estimator=grpo", "ppo.num_generations=4"),
    "ppo": ("ppo.advantage_estimator=gae", "ppo.num_generations=1", "ppo.critic_warmup_iterations=2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub id or folder")
    parser.add_argument("--train", type=Path, required=True, help="comparisons as JSON lines, unpacked")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=96, help="held out, that judge and proxy look at")
    parser.add_argument("--best-of", type=int, default=16, help="beside the first run; 1 leaves it out")
    parser.add_argument("--folder", type=Path, required=True, help="of the runs")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = json.loads(args.out.read_text())["runs"] if args.out.is_file() else []
    done = {(run["algorithm"], run["seed"]) for run in runs}
    halves, test = split(args), subset(args, "test", HELD_OUT)
    proxy, judge = args.folder / "proxy", args.folder / "judge"
    reward_model(args, proxy, halves[0], test, "seed=0")
    reward_model(args, judge, halves[1], test, "seed=1", "lora.reward.top_layers=1.0")
    for seed in args.seeds:
        for algorithm in args.algorithms:
            if (algorithm, seed) not in done:
                runs.append({"algorithm": algorithm, "seed": seed, **one(args, algorithm, seed)})
                args.out.write_text(json.dumps(table(args, runs), indent=1) + "\n", encoding="utf-8")


def split(args: argparse.Namespace) -> tuple[Path, Path]:
    """The short comparisons in two halves, drawn once, that share no prompt's beginning."""
    paths = args.folder / "half-proxy.jsonl", args.folder / "half-judge.jsonl"
    if not all(path.is_file() for path in paths):
        lines = subset(args, "train", None).read_text(encoding="utf-8").strip().split("\n")
        first = {line: json.loads(line)["chosen"].split("\n\nAssistant:")[0] for line in lines}
        questions = sorted(set(first.values()))
        random.Random(0).shuffle(questions)
        of_proxy = set(questions[: len(questions) // 2])
        for path, wanted in zip(paths, (True, False), strict=True):
            path.write_text("".join(line + "\n" for line in lines if (first[line] in of_proxy) == wanted), "utf-8")
    return paths


def reward_model(args: argparse.Namespace, run: Path, train: Path, test: Path, *settings: str) -> None:
    if not (run / "reward" / "summary.json").is_file():
        sources = (f"data.preferences={train}", f"data.preferences_test={test}")
        lorarlhf("reward", *common(args, run), *sets(*LORA, *REWARD, *sources, *settings))


def one(args: argparse.Namespace, algorithm: str, seed: int) -> dict[str, Any]:
    """Train against the proxy; then what proxy and judge say of each checkpoint."""
    run = args.folder / f"{algorithm}-{seed}"
    if not run.exists():
        shutil.copytree(args.folder / "proxy", run)
    sources = (
        f"data.prompts={args.folder / 'half-proxy.jsonl'}",
        f"data.prompts_test={subset(args, 'test', HELD_OUT)}",
    )
    if not (run / "ppo" / "summary.json").is_file():
        resume = ("--resume",) if any((run / "ppo").glob("checkpoint-*")) else ()
        settings = (*LORA, *PPO, *ALGORITHMS[algorithm], *sources, f"ppo.iterations={args.iterations}", f"seed={seed}")
        lorarlhf("ppo", *common(args, run), *sets(*settings), *resume)
    if not (run / "ppo" / "frontier.json").is_file():
        # Best-of-n is the start's, and the start is the same for all.
        best_of = args.best_of if (algorithm, seed) == (args.algorithms[0], args.seeds[0]) else 1
        prompts = subset(args, "test", args.prompts)
        lorarlhf(
            *("evaluate", "--run", run, "--frontier", "--judge", args.folder / "judge", "--dataset", prompts),
            *("--best-of", best_of),
        )
    frontier = json.loads((run / "ppo" / "frontier.json").read_text())
    return {
        "frontier": frontier | {key: Path(frontier[key]).name for key in ("data", "judge")},
        "summary": json.loads((run / "ppo" / "summary.json").read_text()),
        "iterations": [row for row in read_rows(run / "ppo" / "metrics.jsonl", "iteration") if "kl" in row],
    }


def common(args: argparse.Namespace, run: Path) -> tuple[object, ...]:
    return ("--recipe", "smollm2-135m-cpu", "--model", args.model, "--output-dir", run)


def table(args: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("lorarlhf", "torch", "transformers", "peft", "trl")
    of_rewards = {
        name: json.loads((args.folder / name / "reward" / "summary.json").read_text()) for name in ("proxy", "judge")
    }
    return {
        "what": "benchmarks/hh_rl.py; other work ran beside: seconds are upper limits",
        "device": "CPU, one thread",
        "versions": {name: version(name) for name in names},
        "settings": {"lora": LORA, "reward": REWARD, "ppo": PPO, "algorithms": ALGORITHMS},
        "reward_models": of_rewards,
        "runs": runs,
    }


if __name__ == "__main__":
    main()

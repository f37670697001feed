"""One person's taste on a real model: how many labels until the policy has it? A row a number of labels, as JSON.

    python benchmarks/one_person.py --model FOLDER --questions hh.jsonl.gz --folder runs/style --out one-person.json

A person who likes answers short, polite and ending with a question is played by a rule (`taste`), of whose answers one
in ten is wrong. Everything goes the way a person would go: `sample`, the labelling page's HTTP interface, `collect
export`, `reward`, `ppo`; then base and policy answer held-out questions, and the rule says who wins. Steps whose files
are there are not done again, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lorarlhf.data.examples import load_prompt_rows
from lorarlhf.data.rows import NO_COLUMNS, Prompt
from lorarlhf.display import read_rows
from lorarlhf.intervals import wilson
from lorarlhf.recipe.sections import DataConfig

SYSTEM = "You are a friendly assistant. Answer politely in one short sentence, and end with a question."
POLITE = re.compile(r"\b(please|thank|thanks|glad|happy|welcome|sorry|hope|love to|of course|certainly|kind)", re.I)
NOISE = 0.1
LENGTH = 48  # most tokens a response
LONGEST_QUESTION = 90  # characters
TASTE = "short, polite, ending with a question"
SETS = (
    *("model.quantization=none", "lora.r=16", "lora.alpha=32", "data.max_length=192", "data.test_size=0.15"),
    *("reward.max_steps=-1", "reward.num_train_epochs=3", "reward.learning_rate=3e-4", "reward.label_smoothing=0.1"),
    *("reward.per_device_train_batch_size=8", "reward.gradient_accumulation_steps=1", "reward.save_steps=1000"),
    *("ppo.advantage_estimator=rloo", "ppo.num_generations=4", "ppo.batch_size=32", "ppo.num_mini_batches=2"),
    *("ppo.num_ppo_epochs=1", "ppo.learning_rate=7e-4", "ppo.kl_coef=0.05", "ppo.warmup_steps=0"),
    *(f"ppo.response_length={LENGTH}", "ppo.temperature=0.8", "ppo.missing_eos_penalty=1.0"),
    *("ppo.micro_batch_tokens=2048", "ppo.eval_every=4", "ppo.eval_prompts=24", "ppo.save_every=4"),
    "ppo.stop_when={kl: 8}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub id or folder of a chat model")
    parser.add_argument("--questions", required=True, help="comparisons or prompts: short first questions are put")
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=100, help="questions that only the verdict is taken from")
    parser.add_argument("--folder", type=Path, required=True, help="of the runs and files in between")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["runs"] if args.out.is_file() else []
    done = {(row["labels"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for labels in args.labels:
            if (labels, seed) not in done:
                rows.append({"labels": labels, "seed": seed, **one(args, labels, seed)})
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(table(args, rows), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


def one(args: argparse.Namespace, labels: int, seed: int) -> dict[str, Any]:
    """From labels to a policy, and what the rule says of it."""
    start = time.perf_counter()
    train, test = questions(args, max(args.labels))
    pairs = args.folder / "pairs.jsonl"
    if not pairs.is_file() or count(pairs) < max(args.labels):
        lorarlhf(
            *("sample", "--model", args.model, "--prompts", train, "--temperature", 0.8),
            *("--response-length", LENGTH, "--out", pairs),
        )
    folder = args.folder / f"{labels}-{seed}"
    folder.mkdir(exist_ok=True)
    given, preferences, run = folder / "labels.jsonl", folder / "preferences.jsonl", folder / "run"
    if not preferences.is_file():
        answer_page(pairs, given, labels, seed)
        lorarlhf("collect", "export", given, "--pairs", pairs, "--out", preferences)
    common = ("--recipe", "smollm2-135m-cpu", "--model", args.model, "--output-dir", run, *sets(*SETS, f"seed={seed}"))
    if not (run / "reward" / "summary.json").is_file():
        lorarlhf("reward", *common, "--dataset", preferences)
    if not (run / "ppo" / "summary.json").is_file():
        resume = ("--resume",) if any((run / "ppo").glob("checkpoint-*")) else ()
        iterations = sets(f"ppo.iterations={args.iterations}", f"data.prompts={train}")
        lorarlhf("ppo", *common, *iterations, *resume)
    duel = folder / "duel.jsonl"
    if not duel.is_file():
        lorarlhf("sample", "--run", run, "--adapters", "base", run / "ppo", "--n", 1, "--prompts", test, "--out", duel)
    return verdict(duel, run) | {"seconds": round(time.perf_counter() - start)}


def verdict(duel: Path, run: Path) -> dict[str, Any]:
    """Policy (b) against base (a) by the rule, and what each has of the taste."""
    rows = [json.loads(line) for line in duel.read_text(encoding="utf-8").splitlines()]
    before, after = ([row[side][-1]["content"] for row in rows] for side in ("response_a", "response_b"))
    won = [(taste(b) > taste(a)) + 0.5 * (taste(b) == taste(a)) for a, b in zip(before, after, strict=True)]
    rate = wilson(sum(won) / len(won), len(won))
    reward, ppo = (json.loads((run / stage / "summary.json").read_text()) for stage in ("reward", "ppo"))
    last = next(row for row in reversed(read_rows(run / "ppo" / "metrics.jsonl", "iteration")) if "kl" in row)
    return {
        "win_rate": round(rate.value, 3),
        "interval": [round(rate.low, 3), round(rate.high, 3)],
        "questions": len(won),
        "kl_of_last_iteration": round(last["kl"], 2),
        "kept": ppo["best"],
        "reward_accuracy": reward.get("eval_accuracy"),
        "reward_accuracy_interval": reward.get("eval_accuracy_interval"),
        "bag_of_words_accuracy": reward.get("bag_of_words_accuracy"),
        "before": traits(before),
        "after": traits(after),
        "examples": list(zip(before, after, strict=True))[:4],
    }


# The person


def taste(text: str) -> tuple[int, int]:
    """Points for polite, for ending with a question, for at most 20 words; among equals the shorter is better."""
    words = len(text.split())
    return bool(POLITE.search(text)) + text.rstrip().endswith("?") + (words <= 20), -(words // 8)


def traits(texts: list[str]) -> dict[str, float]:
    """Shares of texts with each trait, and their mean number of words."""
    each = {
        "polite": [bool(POLITE.search(text)) for text in texts],
        "asks": [text.rstrip().endswith("?") for text in texts],
        "short": [len(text.split()) <= 20 for text in texts],
        "words": [len(text.split()) for text in texts],
    }
    return {name: round(sum(values) / len(values), 3) for name, values in each.items()}


def answer_page(pairs: Path, labels: Path, wanted: int, seed: int) -> None:
    """Give answers through the labelling page's interface; one in ten is the wrong one."""
    draw = random.Random(seed)
    command = [sys.executable, "-m", "lorarlhf", "collect", "--no-open", "--pairs", str(pairs), "--out", str(labels)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    )
    assert server.stdout is not None
    printed = iter(server.stdout.readline, "")
    link = next(line.split()[-1] for line in printed if "http://" in line)
    try:
        reply = call(f"{link}api/next?{urlencode({'annotator': 'rule'})}")
        for _ in range(wanted):
            task = reply["task"]
            left, right = (taste(task[side][-1]["content"]) for side in ("left", "right"))
            choice = "tie" if left == right else "left" if (left > right) != (draw.random() < NOISE) else "right"
            answer = {"task": task["id"], "pair_id": task["pair_id"], "choice": choice}
            reply = call(f"{link}api/label", answer | {"annotator": "rule", "seconds": 4.0})
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate()


def call(address: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


# Files and commands


def questions(args: argparse.Namespace, pairs: int) -> tuple[Path, Path]:
    """Prompts to train on, with a few to spare as not every prompt gives a pair, and those held out."""
    paths = args.folder / "train.jsonl", args.folder / "test.jsonl"
    if not all(path.is_file() for path in paths):
        config = DataConfig(preferences=args.questions, on_bad_row="skip", test_size=0.0)
        rows = load_prompt_rows(config, "train", NO_COLUMNS).rows
        short = [text for row in rows if (text := first_question(row.prompt))]
        texts = list(dict.fromkeys(short))
        for path, part in zip(paths, (texts[args.held_out :][: pairs * 5 // 4], texts[: args.held_out]), strict=True):
            asked = ([{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}] for text in part)
            path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked), encoding="utf-8")
    return paths


def first_question(prompt: Prompt) -> str | None:
    text = prompt[0]["content"] if isinstance(prompt, list) and len(prompt) == 1 else None
    return text if text and len(text) <= LONGEST_QUESTION else None


def count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def sets(*texts: str) -> tuple[str, ...]:
    return tuple(part for text in texts for part in ("--set", text))


def lorarlhf(*arguments: object) -> None:
    command = [sys.executable, "-m", "lorarlhf", *map(str, arguments)]
    subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=sys.stderr, check=True)


def table(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("lorarlhf", "torch", "transformers", "peft", "trl")
    return {
        "taste": TASTE,
        "noise": NOISE,
        "system": SYSTEM,
        "settings": [*SETS, f"ppo.iterations={args.iterations}"],
        "device": "CPU",
        "versions": {name: version(name) for name in names},
        "runs": rows,
    }


if __name__ == "__main__":
    main()

"""What the planner plans against what stages take, on a CPU: a row a stage, as JSON.

    python benchmarks/planner.py --model FOLDER --comparisons hh.jsonl --folder runs/planner --out planner-cpu.json

Every row is a stage as a user runs it, in a process of its own, and the `peak_memory_gb` of its summary: the process's
resident memory. `full` rows have as many tokens as the recipe allows and share next to nothing, as a plan takes them to
be; `real` ones are the comparisons given. Two models: the one given, in float32, and the shape of `ppo.py --model cpu`
with random weights, in NF4 and bfloat16. Rows that the file has are not measured again, but all are planned anew:
without `--folder` and the others, nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from ppo import cpu_name
from random_models import architecture, random_model, word_tokenizer
from transformers import AutoConfig, PreTrainedTokenizerBase

from lorarlhf.backbone.load import load_tokenizer
from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.data.tokenized import preference_examples, prompt_examples
from lorarlhf.planner.plan import Planner
from lorarlhf.recipe.load import load_recipe

RECIPE = "smollm2-135m-cpu"
STAGES = {"sft": "sft", "reward": "reward", "gae": "ppo", "rloo": "ppo"}
SETS = {
    "random": (
        *("model.quantization=nf4", "model.compute_dtype=bfloat16", "data.max_length=128", "data.max_prompt_length=64"),
        *("ppo.num_mini_batches=4", "ppo.num_ppo_epochs=2", "ppo.micro_batch_tokens=4096"),
    ),
    "given": ("model.quantization=none", "model.compute_dtype=float32", "ppo.num_mini_batches=2"),
}
SHORT = (
    *(
        "data.max_examples=null",
        "data.eval_examples=8",
        "sft.max_steps=2",
        "reward.max_steps=2",
        "ppo.iterations=1",
        "ppo.critic_warmup_iterations=0",
        "ppo.eval_every=0",
    ),
    *("sft.per_device_train_batch_size=8", "sft.gradient_accumulation_steps=2", "ppo.stop_when=null"),
    "ppo.early_stop_kl=null",
)
HELD_OUT = 50  # of the comparisons given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a chat model")
    parser.add_argument("--comparisons", type=Path, help="as JSON lines")
    parser.add_argument("--folder", type=Path, help="of runs and files in between")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    quiet_libraries()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    done = {(row["model"], row["stage"], row["rows"]) for row in rows}
    for model, stage, kind in cases() if args.folder else ():
        if (model, stage, kind) not in done:
            rows.append({"model": model, "stage": stage, "rows": kind, **measured(args, model, stage, kind)})
            write(args.out, rows)
    for row in rows:
        row |= planned(row)
    print(write(args.out, rows))


def cases() -> Iterator[tuple[str, str, str]]:
    for kind in ("full", "real"):
        for model in SETS if kind == "full" else ("given",):
            for stage in STAGES:
                yield model, stage, kind


def measured(args: argparse.Namespace, model: str, stage: str, kind: str) -> dict[str, Any]:
    """The peak of one stage. `reward` stands before those of ppo, which need its adapter."""
    folder = args.folder.resolve() / f"{model}-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    weights = args.model.resolve() if model == "given" else random_weights(folder.parent / "model")
    sets = [*SHORT, *SETS[model]]
    if STAGES[stage] == "ppo":
        sets += [f"ppo.advantage_estimator={stage}", f"ppo.num_generations={4 if stage == 'rloo' else 1}"]
    run = folder / ("sft" if stage == "sft" else "run")  # whose adapter would be a reference otherwise
    command = [sys.executable, "-m", "lorarlhf", STAGES[stage], "--recipe", RECIPE, "--model", str(weights)]
    data = [f"data.{key}={path}" for key, path in sources(args, folder, weights, model, kind).items()]
    command += ["--output-dir", str(run), *(part for value in [*sets, *data] for part in ("--set", value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    summary = json.loads((run / STAGES[stage] / "summary.json").read_text())
    return {
        "measured_gb": round(summary["peak_memory_gb"], 3),
        "config": json.loads((weights / "config.json").read_text()),
        "sets": sets,
    }


def planned(row: dict[str, Any]) -> dict[str, Any]:
    """What `lorarlhf plan` says of a row's stage today, and the ratio of what was measured to it."""
    recipe = load_recipe(RECIPE, sets=row["sets"])
    config = AutoConfig.for_model(**row["config"])
    planner = Planner(recipe, config, "cpu", reference=False)
    stage = STAGES[row["stage"]]
    plan = planner.ppo(recipe.ppo.token_budget) if stage == "ppo" else planner.supervised(stage)
    total = plan.peak.total / 1e9
    return {"planned_gb": round(total, 3), "phase": plan.peak.name, "ratio": round(total / row["measured_gb"], 3)}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = json.dumps({"device": cpu_name(), "threads": torch.get_num_threads(), "rows": rows}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return text


def random_weights(folder: Path) -> Path:
    """The shape of `ppo.py --model cpu` as a folder."""
    if not folder.is_dir():
        config = architecture("cpu")
        random_model(config, "none", torch.bfloat16, classifier=False).save_pretrained(folder)
        word_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def sources(args: argparse.Namespace, folder: Path, weights: Path, model: str, kind: str) -> dict[str, Path]:
    """Files of rows by their keys of `data`."""
    keys = ("preferences", "preferences_test", "sft", "sft_test", "prompts", "prompts_test")
    if kind == "real":
        lines = args.comparisons.read_text(encoding="utf-8").splitlines(keepends=True)
        parts = {"train": lines[:-HELD_OUT], "test": lines[-HELD_OUT:]}
        for name, part in parts.items():
            (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
        return {key: folder / ("test.jsonl" if key.endswith("_test") else "train.jsonl") for key in keys}
    recipe = load_recipe(RECIPE, sets=[*SHORT, *SETS[model], f"model.name={weights}"])
    tokenizer = load_tokenizer(recipe.model)
    words = whole_words(tokenizer)
    draw = random.Random(0)

    def put(name: str, prompt: int, response: int) -> Path:
        rows = [[" ".join(draw.choices(words, k=count)) for count in (prompt, response, response)] for _ in range(80)]
        lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder / f"{name}.jsonl"

    # How many tokens the template adds.
    data = recipe.data.model_copy(update={"preferences": str(put("probe", 8, 8)), "prompts": None})
    (prompt, *_), rows = (
        prompt_examples(data, tokenizer, "train"),
        preference_examples(data, tokenizer, "train").dataset,
    )
    around_prompt, around_both = len(prompt.ids) - 8, len(rows[0]["chosen_ids"]) - 16
    # Both sides of a comparison are computed behind what they share: next to nothing.
    pairs = {name: put(name, 2, data.max_length - around_both - 2) for name in ("pairs", "pairs_test")}
    prompts = {name: put(name, data.max_prompt_length - around_prompt, 8) for name in ("prompts", "prompts_test")}
    of_pairs = {key: pairs["pairs_test" if key.endswith("_test") else "pairs"] for key in keys[:4]}
    return of_pairs | prompts


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words that are a token each, also behind a space."""
    texts = [tokenizer.decode([token]).strip() for token in range(1000, 6000)]
    return [text for text in texts if text.isalnum() and text.isascii() and _count(tokenizer, f"{text} {text}") == 2]


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


if __name__ == "__main__":
    main()

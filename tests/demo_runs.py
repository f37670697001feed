"""The demo's recipe made small: a few rows of its files and a few short steps, a second or two a stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe, Role
from lorarlhf.run import Run

DEMO = Path(__file__).parents[1] / "data" / "demo"
ROWS = {"sft": 40, "preferences": 40, "preferences_test": 12, "prompts": 20, "prompts_test": 8}
SMALL = (
    "model.compute_dtype=float32",  # on every machine: `auto` is bfloat16 where a CPU multiplies it fast
    "ppo.iterations=2",
    "ppo.batch_size=8",
    "ppo.num_mini_batches=2",
    "ppo.num_ppo_epochs=1",
    "ppo.response_length=12",
    "ppo.eval_prompts=4",
    # The demo's own choices are tuned now and then; what the tests build on stays.
    "ppo.temperature=1.0",
    "ppo.learning_rate=1e-3",
    "ppo.lr_scheduler_type=constant",
    "ppo.kl_coef=0.05",
    "ppo.early_stop_kl=null",
    "ppo.missing_eos_penalty=null",
    "ppo.micro_batch_tokens=8192",
    *(f"{stage}.learning_rate=1e-3" for stage in ("sft", "reward")),
    *(f"{stage}.gradient_checkpointing=false" for stage in ("sft", "reward", "ppo")),
    *(f"{stage}.gradient_accumulation_steps=1" for stage in ("sft", "reward")),
    "data.test_size=0.2",
    *(f"{stage}.max_steps=3" for stage in ("sft", "reward")),
    *(f"{stage}.logging_steps=1" for stage in ("sft", "reward")),
    *(f"{stage}.per_device_train_batch_size=4" for stage in ("sft", "reward")),
)
# What differs between two runs of the same thing.
CLOCK = ("seconds", "tokens_per_second", "peak_memory_gb", "runtime", "per_second")


def small_sets(folder: Path) -> list[str]:
    """`--set` texts that turn the recipe `demo` into a small one, on files written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = list(SMALL)
    for key, rows in ROWS.items():
        lines = (DEMO / f"{key}.jsonl").read_text(encoding="utf-8").split("\n")[:rows]
        path = folder / f"{key}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        sets.append(f"data.{key}={path}")
    return sets


def small_recipe(folder: Path, *sets: str) -> Recipe:
    return load_recipe("demo", sets=[*small_sets(folder / "data"), *sets])


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `metrics.jsonl`, or a summary, without what the clock and the machine have written into it."""
    return {key: value for key, value in row.items() if not any(part in key for part in CLOCK)}


def weights(backbone: SharedBackbone, role: Role) -> list[Tensor]:
    """A copy of the role's adapter and head."""
    return [parameter.detach().clone() for parameter in backbone.role_parameters(role)]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(left) == len(right) > 0 and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def save_random_adapter(recipe: Recipe, run: Run, stage: str) -> None:
    """The adapter that a finished stage leaves behind, one that does something."""
    role: Role = "reward" if stage == "reward" else "policy"
    backbone = load_backbone(recipe.model)
    torch.manual_seed({"ppo": 16, "sft": 17, "reward": 17}[stage])
    backbone.attach(role, recipe.lora.for_role(role))
    with torch.no_grad():
        for parameter in backbone.role_parameters(role):
            parameter.add_(0.05 * torch.randn_like(parameter))
    backbone.save_role(role, run.path / stage)
    backbone.tokenizer.save_pretrained(run.path / stage)


def run_with(folder: Path, stages: Sequence[str], *sets: str) -> Run:
    """A run of the small recipe, in which these stages have left random adapters."""
    recipe, run = small_recipe(folder, *sets), Run(folder / "run")
    run.write_recipe(recipe)
    for stage in stages:
        save_random_adapter(recipe, run, stage)
    return run


# Rewards from Python, as `demo_runs:short_is_good`.


def short_is_good(prompts: list[str], responses: list[str]) -> list[float]:
    return [-len(response) / 10 for response in responses]


def letter_e(prompts: list[str], responses: list[str]) -> list[float]:
    return [response.count("e") / 4 for response in responses]

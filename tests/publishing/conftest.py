"""Runs whose adapters were drawn at random, on the demo's base model."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch

from lorarlhf.backbone.load import load_backbone
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.run import Run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model only waits for threads, twenty times as long where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """`make_run(stages, sets)`: a run in which these stages are done."""
    return partial(_make_run, tmp_path / "run")


def _make_run(path: Path, stages: Sequence[Stage], sets: Sequence[str] = ()) -> Run:
    recipe: Recipe = load_recipe("demo", sets=sets)
    run = Run(path)
    run.write_recipe(recipe)
    torch.manual_seed(1)
    backbone = load_backbone(recipe.model)
    for stage in stages:
        role: Literal["policy", "reward"] = "reward" if stage == "reward" else "policy"
        if role not in backbone.roles:
            backbone.attach(role, recipe.lora.for_role(role))
        for name, parameter in backbone.named_parameters():
            if f"lora_B.{role}" in name:
                parameter.data.normal_(std=0.05)
        backbone.save_role(role, run.stage(stage))
        backbone.tokenizer.save_pretrained(run.stage(stage))
        run.write_summary(stage, {"eval_accuracy": 0.8125, "best": {"eval_reward": 1.5}, "steps": 20, "before": None})
    return run

"""The ppo stage: what a run leaves behind."""

import pytest
import torch
from demo_runs import (
    equal,
    read_jsonl,
    small_recipe,
    weights,
    write_jsonl,
)
from safetensors.torch import load_file

from lorarlhf.backbone.base import base_of
from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import UserError
from lorarlhf.rl import loop as loop_module
from lorarlhf.run import Run
from lorarlhf.stages import loading
from lorarlhf.stages import ppo as ppo_stage
from lorarlhf.stages.ppo import train_ppo

FUNCTION = 'ppo.reward_functions=["demo_runs:short_is_good"]'


def test_a_run_and_what_it_leaves_behind(run, tmp_path):
    run = run("sft", "reward")
    recipe = small_recipe(tmp_path, "ppo.eval_every=1", "ppo.save_every=1", "ppo.save_total_limit=1")
    backbone = load_backbone(recipe.model)
    frozen = {}

    def watch(*args, real=loop_module.score):
        frozen.setdefault("reference", weights(backbone, "reference"))
        frozen.setdefault("reward", weights(backbone, "reward"))
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "score", watch)
        summary = train_ppo(recipe, run, backbone=backbone)
    assert run.read_summary("ppo") == summary
    assert set(summary) == {
        *("engine", "iterations", "reward", "kl", "before", "best", "reference", "train_prompts", "eval_prompts"),
        *("seconds", "peak_memory_gb", "advantage_estimator", "improved", "stopped", "skipped"),
        *("train_rows", "eval_rows"),
    }
    assert (summary["iterations"], summary["reference"], summary["train_prompts"]) == (2, "sft", 20)
    rows = read_jsonl(run.stage("ppo") / "metrics.jsonl")
    assert [(row["iteration"], "eval_reward" in row) for row in rows] == [
        (0, True),
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]
    assert rows[1]["kl"] == pytest.approx(0, abs=1e-5), "the policy starts as its reference"
    assert summary["before"]["eval_reward"] == rows[0]["eval_reward"]
    evaluations = [row for row in rows if "eval_reward" in row]
    best = max(evaluations, key=lambda row: row["eval_objective"])
    assert summary["improved"] == (best["iteration"] > 0)
    assert summary["stopped"] is None
    assert summary["best"] == {key: value for key, value in best.items() if key not in ("step", "warnings")}
    assert (summary["reward"], summary["kl"]) == (rows[3]["reward"], rows[3]["kl"])
    assert run.read_recipe() == run.read_recipe(stage="ppo") == recipe
    assert (run.stage("ppo") / "recipe.yaml").is_file()
    assert all(
        base_of(run.stage("ppo") / name) == backbone.adapters.base for name in ("", "best", "checkpoint-2/policy")
    )
    for role, before in frozen.items():
        assert equal(before, weights(backbone, role))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert sorted(path.name for path in run.stage("ppo").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"], (
        "two at least"
    )
    assert len(read_jsonl(run.stage("ppo") / "samples.jsonl")) == 3 * 4
    best = load_file(run.stage("ppo") / "best" / "adapter_model.safetensors")
    final = load_file(run.stage("ppo") / "adapter_model.safetensors")
    assert all(torch.equal(best[name], final[name]) for name in best)
    assert all(torch.equal(a, b) for a, b in zip(weights(backbone, "policy"), saved(backbone, final), strict=True))


def saved(backbone, state):
    """Tensors of an adapter file in the order of `role_parameters`."""
    names = [name for name, _ in backbone.peft_model.named_parameters() if ".policy." in name]
    return [state[name.replace(".policy.", ".")] for name in names]


def test_an_earlier_run_is_moved_aside(run, tmp_path, caplog):
    run = run()
    recipe = small_recipe(tmp_path, FUNCTION, "ppo.iterations=1", "ppo.eval_every=0", "ppo.save_every=0")
    for _ in range(3):
        train_ppo(recipe, run)
    assert sorted(path.name for path in run.path.iterdir()) == ["ppo", "ppo.1", "ppo.2", "recipe.yaml"]
    assert all((run.path / name / "summary.json").is_file() for name in ("ppo", "ppo.1", "ppo.2"))
    assert f"{run.path / 'ppo'} held an earlier run; it is now {run.path / 'ppo.2'}" in caplog.text


def test_few_prompts_are_enough_where_nothing_is_evaluated(run, tmp_path):
    prompts = write_jsonl(tmp_path / "few.jsonl", [{"prompt": f"{i}?"} for i in range(3)])
    sets = [f"data.prompts={prompts}", "data.prompts_test=null", "data.test_size=0.001"]
    sets += [FUNCTION, "ppo.iterations=1", "ppo.save_every=0"]
    with pytest.raises(UserError, match=r"none of 3 rows falls in the test part at data\.test_size"):
        train_ppo(small_recipe(tmp_path, *sets), run())
    summary = train_ppo(small_recipe(tmp_path, *sets, "ppo.eval_every=0"), run())
    assert (summary["train_prompts"], summary["eval_prompts"]) == (3, 0)


@pytest.mark.parametrize(
    "fault", ["data.prompts=missing.jsonl", "model.name=no/such/model", "ppo.optim=paged_adamw_8bit"]
)
def test_a_mistake_leaves_the_earlier_run_where_it_is(run, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = run("reward")
    (run.path / "ppo").mkdir()
    (run.path / "ppo" / "summary.json").write_text("{}")
    with pytest.raises(UserError):
        train_ppo(small_recipe(tmp_path, fault), run)
    assert sorted(path.name for path in run.path.iterdir()) == ["ppo", "reward"]


def test_all_checkpoints_are_kept_if_the_recipe_says_so(run, tmp_path):
    run = run()
    sets = (FUNCTION, "ppo.iterations=4", "ppo.eval_every=0", "ppo.save_every=1", "ppo.save_total_limit=null")
    train_ppo(small_recipe(tmp_path, *sets), run)
    assert len(list(run.stage("ppo").glob("checkpoint-*"))) == 4


def test_an_automatic_budget_is_found_before_the_model_takes_its_memory(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(ppo_stage, "find_reward_adapter", lambda *_: None)
    monkeypatch.setattr(loading, "check_memory", lambda _, recipe, __: done.append(recipe.ppo.micro_batch_tokens))
    monkeypatch.setattr(ppo_stage, "auto_token_budget", lambda *_, **__: done.append("budget") or 512)
    monkeypatch.setattr(loading, "load_backbone", lambda *_: done.append("model") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_ppo(small_recipe(tmp_path, "ppo.micro_batch_tokens=auto"), Run(tmp_path / "run"))
    assert done == ["budget", 512, "model"]

"""The ppo stage: what a run leaves behind, and going on after an interruption."""

import itertools
import json
import os
import shutil
import signal

import pytest
import torch
from demo_runs import (
    equal,
    read_jsonl,
    small_recipe,
    untimed,
    weights,
    write_jsonl,
)
from safetensors.torch import load_file, save_file

from lorarlhf.backbone.base import base_of
from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import Stopped, UserError
from lorarlhf.rl import loop as loop_module
from lorarlhf.rl import update as update_module
from lorarlhf.rl.learner import Learner
from lorarlhf.run import Run
from lorarlhf.stages import ppo as ppo_stage
from lorarlhf.stages.ppo import train_ppo

FUNCTION = 'ppo.reward_functions=["demo_runs:short_is_good"]'


# A whole run


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
    assert rows[1]["kl"] == 0, "the policy starts as its reference"
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


# Seeds and resuming

STEADY = ()
RLOO = "ppo.advantage_estimator=rloo"
EVERYTHING = (
    "ppo.normalize_reward=true",
    "ppo.kl_target=0.05",
    "ppo.kl_horizon=50",
    "ppo.warmup_steps=2",
    "ppo.lr_scheduler_type=linear",
    "ppo.missing_eos_penalty=0.5",
    "ppo.eval_every=1",
)
BASE = ("ppo.iterations=4", "ppo.save_every=2", "ppo.eval_every=0", FUNCTION)


def outcome(run):
    """All that should be the same: weights of both roles, logged rows, samples, summary."""
    folder = run.stage("ppo")
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = [folder / "adapter_model.safetensors", *sorted(last.glob("*/adapter_model.safetensors"))]
    tensors = {f"{path.parent.name}/{name}": x for path in files for name, x in load_file(path).items()}
    samples = folder / "samples.jsonl"
    return {
        "tensors": {name: x.numpy().tobytes() for name, x in tensors.items()},
        "state": untimed_state(json.loads((last / "state.json").read_text())),
        "rows": [untimed(row) for row in read_jsonl(folder / "metrics.jsonl")],
        "samples": read_jsonl(samples) if samples.exists() else [],
        "summary": untimed(run.read_summary("ppo")),
    }


def untimed_state(state):
    """What a checkpoint says, rounded by nothing, without the clock."""
    return state | {"last": untimed(state["last"])}


def interrupted_train(recipe, run, monkeypatch, steps):
    """Ctrl-C in the middle of an iteration, after so many minibatches in all."""
    real = update_module.minibatch_gradients
    done = []

    def gradients(*args):
        done.append(None)
        if len(done) > steps:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(update_module, "minibatch_gradients", gradients)
        with pytest.raises(KeyboardInterrupt):
            train_ppo(recipe, run)


@pytest.mark.parametrize(
    "settings",
    [STEADY, EVERYTHING, (*EVERYTHING, RLOO), ("ppo.advantage_estimator=grpo",)],
    ids=["steady", "everything", "rloo", "grpo"],
)
def test_resumed_is_uninterrupted_bit_for_bit(run, tmp_path, monkeypatch, settings):
    recipe = small_recipe(tmp_path, *BASE, *settings)
    whole, broken = run("sft", name="whole"), run("sft", name="broken")
    train_ppo(recipe, whole)
    interrupted_train(recipe, broken, monkeypatch, steps=3 * 2 + 1)
    best = broken.stage("ppo") / "best" / "adapter_model.safetensors"
    if best.exists():  # a better policy after the checkpoint, which going on may not find again
        save_file({name: x + 1 for name, x in load_file(best).items()}, best)
    rows = read_jsonl(broken.stage("ppo") / "metrics.jsonl")
    assert rows[-1]["iteration"] == 3, "iteration 3 was logged, and only iteration 2 was saved"
    train_ppo(recipe, broken, resume=True)
    resumed, expected = outcome(broken), outcome(whole)
    for part in expected:
        assert resumed[part] == expected[part], part


def test_a_signal_ends_the_iteration_and_what_goes_on_is_uninterrupted(run, tmp_path, monkeypatch):
    recipe = small_recipe(tmp_path, *BASE, RLOO, "ppo.save_every=4")
    whole, stopped = run(name="whole"), run(name="stopped")
    train_ppo(recipe, whole)

    def update(*args, real=loop_module.update):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "update", update)
        with pytest.raises(Stopped, match="stopped by SIGINT after iteration 1, with ppo/checkpoint-1") as told:
            train_ppo(recipe, stopped)
    assert told.value.number == signal.SIGINT
    train_ppo(recipe, stopped, resume=True)
    assert outcome(stopped) == outcome(whole)


# NaN and infinity


def test_steps_far_too_large_end_with_a_line_and_keep_the_checkpoint_before(run, tmp_path):
    run = run()
    sets = (FUNCTION, RLOO, "ppo.eval_every=0", "ppo.iterations=3", "ppo.save_every=1")
    train_ppo(small_recipe(tmp_path, *sets, "ppo.iterations=1"), run)
    steep = small_recipe(tmp_path, *sets, "ppo.learning_rate=1e30", "ppo.num_mini_batches=1")
    with pytest.raises(
        UserError, match=r"NaN or infinity in what it computes after the last step of the policy"
    ) as told:
        train_ppo(steep, run)
    assert "\n" not in str(told.value)
    assert not list(run.stage("ppo").glob("checkpoint-*"))
    (text,) = json.loads((run.stage("ppo") / "not_finite.json").read_text())["texts"]
    assert text
    assert (run.path / "ppo.1" / "checkpoint-1").is_dir()


def spoilt(real, *calls):
    """A scorer that gives NaN for the second response at these calls."""
    count = itertools.count(1)

    def score(*args):
        scored = real(*args)
        if next(count) in calls:
            scored.scores[1] = float("nan")
        return scored

    return score


def test_a_score_that_is_nan_is_told_with_its_text_before_a_step(run, tmp_path, monkeypatch):
    run = run("reward")
    monkeypatch.setattr(loop_module, "score", spoilt(loop_module.score, 2))
    with pytest.raises(UserError, match="NaN or infinity in the score of the reward after iteration 1, with the texts"):
        train_ppo(small_recipe(tmp_path, "ppo.eval_every=0", "ppo.save_every=1"), run)
    assert [path.name for path in run.stage("ppo").glob("checkpoint-*")] == ["checkpoint-1"]
    told = json.loads((run.stage("ppo") / "not_finite.json").read_text())
    assert (told["what"], told["role"], len(told["texts"])) == ("the score", "reward", 1)


def test_nan_is_passed_over_and_counted_where_the_recipe_says_so(run, tmp_path, monkeypatch):
    run = run("reward")
    monkeypatch.setattr(loop_module, "score", spoilt(loop_module.score, 2))
    real, steps = Learner.backward, itertools.count(1)

    def backward(self, loss):
        real(self, loss * (float("nan") if next(steps) == 1 else 1))

    monkeypatch.setattr(Learner, "backward", backward)
    sets = ("ppo.eval_every=0", "ppo.save_every=1", "ppo.iterations=3", "ppo.on_nan=skip")
    summary = train_ppo(small_recipe(tmp_path, *sets), run)
    assert (summary["skipped"], summary["iterations"]) == (2, 3)
    rows = read_jsonl(run.stage("ppo") / "metrics.jsonl")
    assert [row.get("skipped") for row in rows] == [1, 2, 2]
    assert "reward" not in rows[1]
    assert all(x.isfinite().all() for x in load_file(run.stage("ppo") / "adapter_model.safetensors").values())


def test_a_spoilt_reward_adapter_is_refused_and_nothing_is_moved(run, tmp_path):
    run = run("reward")
    file = run.stage("reward") / "adapter_model.safetensors"
    save_file({name: x * float("nan") for name, x in load_file(file).items()}, file)
    (run.path / "ppo").mkdir()
    (run.path / "ppo" / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"reward: NaN or infinity in .*; the adapter is spoiled"):
        train_ppo(small_recipe(tmp_path), run)
    assert sorted(path.name for path in run.path.iterdir()) == ["ppo", "reward"]


def test_one_seed_one_run(run, tmp_path):
    outcomes = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        run_ = run("reward", name=name)
        train_ppo(small_recipe(tmp_path, "ppo.iterations=1", "ppo.save_every=1", f"seed={seed}"), run_)
        outcomes.append(outcome(run_))
    a, b, c = outcomes
    assert a == b
    assert a["tensors"] != c["tensors"]
    assert a["rows"][0]["eval_reward"] != c["rows"][0]["eval_reward"]


def test_resuming_a_finished_run_changes_nothing(run, tmp_path):
    recipe = small_recipe(tmp_path, FUNCTION, "ppo.save_every=2", "ppo.eval_every=2")
    run = run()
    train_ppo(recipe, run)
    before = outcome(run)
    train_ppo(recipe, run, resume=True)
    after = outcome(run)
    for part in before:
        assert after[part] == before[part], part


def test_a_stopped_run_stays_stopped_until_the_rule_is_loosened(run, tmp_path):
    sets = (*BASE, "ppo.learning_rate=0.01")
    straight = run(name="straight")
    train_ppo(small_recipe(tmp_path, *sets), straight)
    kl = [row["kl"] for row in read_jsonl(straight.stage("ppo") / "metrics.jsonl")]
    limit = kl[1] / 2
    assert kl[0] < limit, "it grows"
    stopped = run()
    strict = small_recipe(tmp_path, *sets, f"ppo.stop_when.kl={limit}")
    summary = train_ppo(strict, stopped)
    assert (summary["iterations"], summary["improved"]) == (2, None)
    assert summary["stopped"] == f"KL {kl[1]:.2f} nats a response (ppo.stop_when.kl {limit:g})"
    assert train_ppo(strict, stopped, resume=True)["stopped"] == summary["stopped"]
    loosened = train_ppo(small_recipe(tmp_path, *sets, "ppo.stop_when.kl=1e6"), stopped, resume=True)
    assert loosened["stopped"] is None
    expected, resumed = outcome(straight), outcome(stopped)
    assert all(resumed[part] == expected[part] for part in expected)


def test_symptoms_are_said_once_also_by_a_resumed_run(run, tmp_path, monkeypatch, capsys):
    recipe = small_recipe(
        tmp_path, *BASE, "ppo.response_length=1", "ppo.save_every=1", "ppo.critic_warmup_iterations=1"
    )
    straight, broken = run(name="straight"), run()
    train_ppo(recipe, straight)
    out = capsys.readouterr().out
    assert out.count("ppo: warning: all responses are cut off") == 1
    assert "ppo 1/4  critic warm-up 1/1  reward" in out
    assert out.count("critic warm-up") == 1
    rows = read_jsonl(straight.stage("ppo") / "metrics.jsonl")
    assert [list(row.get("warnings", {})) for row in rows] == [["cut_off"], [], [], []]
    interrupted_train(recipe, broken, monkeypatch, 5)
    train_ppo(recipe, broken, resume=True)
    assert outcome(broken) == outcome(straight)


@pytest.fixture(scope="module")
def with_checkpoints(tmp_path_factory):
    """A finished run with checkpoints after iterations 2 and 4, and its recipe."""
    folder = tmp_path_factory.mktemp("checkpoints")
    recipe = small_recipe(folder, *BASE)
    train_ppo(recipe, Run(folder / "run"))
    return folder / "run", recipe


@pytest.fixture
def checkpointed(with_checkpoints, tmp_path):
    """A copy of it to be damaged."""
    run, recipe = with_checkpoints
    return Run(shutil.copytree(run, tmp_path / "run")), recipe


@pytest.mark.parametrize("fault", ["cut short", "changed", "missing", "half written"])
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_goes_on_bit_for_bit(checkpointed, caplog, fault):
    run, recipe = checkpointed
    expected = outcome(run)
    newest = run.stage("ppo") / "checkpoint-4"
    file = newest / "policy" / "adapter_model.safetensors"
    if fault == "cut short":
        file.write_bytes(file.read_bytes()[:-8])
    elif fault == "changed":
        file.write_bytes(file.read_bytes()[:-8] + b"12345678")
    elif fault == "missing":
        file.unlink()
    else:
        newest.rename(newest.with_name("checkpoint-4.part"))
    train_ppo(recipe, run, resume=True)
    assert outcome(run) == expected
    if fault == "half written":  # of that name there is no checkpoint
        assert "checkpoint-4" not in caplog.text
        assert not newest.with_name("checkpoint-4.part").exists()
    else:
        reason = "policy/adapter_model.safetensors is " + ("missing" if fault == "missing" else "not as it was written")
        assert f"{newest}: {reason}; going on from checkpoint-2" in caplog.text


def test_a_checkpoint_of_an_older_format_is_refused_in_one_line(checkpointed):
    run, recipe = checkpointed
    for number in (2, 4):
        (run.stage("ppo") / f"checkpoint-{number}" / "manifest.json").unlink()
    with pytest.raises(UserError) as error:
        train_ppo(recipe, run, resume=True)
    message = str(error.value)
    assert "no checkpoint to resume from" in message
    assert "checkpoint-4: has no manifest.json, so it is half written or of lorarlhf before 0.2" in message
    assert "\n" not in message


def test_all_checkpoints_are_kept_if_the_recipe_says_so(run, tmp_path):
    run = run()
    train_ppo(small_recipe(tmp_path, *BASE, "ppo.save_every=1", "ppo.save_total_limit=null"), run)
    assert len(list(run.stage("ppo").glob("checkpoint-*"))) == 4


def test_nothing_to_resume(run, tmp_path):
    run = run("reward")
    with pytest.raises(
        UserError, match="no checkpoint to resume from; begin again with `lorarlhf ppo` without --resume"
    ):
        train_ppo(small_recipe(tmp_path), run, resume=True)


def test_an_automatic_budget_is_found_before_the_model_takes_its_memory(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(ppo_stage, "find_reward_adapter", lambda *_: None)
    monkeypatch.setattr(ppo_stage, "check_memory", lambda _, recipe, **__: done.append(recipe.ppo.micro_batch_tokens))
    monkeypatch.setattr(ppo_stage, "auto_token_budget", lambda *_, **__: done.append("budget") or 512)
    monkeypatch.setattr(ppo_stage, "load_backbone", lambda *_: done.append("model") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_ppo(small_recipe(tmp_path, "ppo.micro_batch_tokens=auto"), Run(tmp_path / "run"))
    assert done == ["budget", 512, "model"]

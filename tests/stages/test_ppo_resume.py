"""The ppo stage goes on after an interruption as if there had been none; one seed is one run."""

import json
import os
import shutil
import signal

import pytest
from demo_runs import (
    read_jsonl,
    small_recipe,
    untimed,
)
from safetensors.torch import load_file, save_file

from lorarlhf.errors import Stopped, UserError
from lorarlhf.rl import loop as loop_module
from lorarlhf.rl import update as update_module
from lorarlhf.run import Run
from lorarlhf.stages.ppo import train_ppo

FUNCTION = 'ppo.reward_functions=["demo_runs:short_is_good"]'
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


def test_nothing_to_resume(run, tmp_path):
    run = run("reward")
    with pytest.raises(
        UserError, match="no checkpoint to resume from; begin again with `lorarlhf ppo` without --resume"
    ):
        train_ppo(small_recipe(tmp_path), run, resume=True)

"""NaN and infinity in the ppo stage: told, or passed over, and never saved."""

import itertools
import json

import pytest
from demo_runs import (
    read_jsonl,
    small_recipe,
)
from safetensors.torch import load_file, save_file

from lorarlhf.errors import UserError
from lorarlhf.rl import loop as loop_module
from lorarlhf.rl.learner import Learner
from lorarlhf.stages.ppo import train_ppo

FUNCTION = 'ppo.reward_functions=["demo_runs:short_is_good"]'
RLOO = "ppo.advantage_estimator=rloo"


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

"""sft and reward: killed anywhere and resumed, they leave what they would have left, bit for bit."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from demo_runs import read_jsonl, small_recipe, untimed

from lorarlhf.errors import Stopped, UserError
from lorarlhf.manifest import fault_of
from lorarlhf.run import Run
from lorarlhf.stages import reward, sft
from lorarlhf.training.reward import RewardModelTrainer
from lorarlhf.training.sft import PolicySFTTrainer

STAGES = {"sft": (sft, sft.train_sft, PolicySFTTrainer), "reward": (reward, reward.train_reward, RewardModelTrainer)}
KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def recipe_of(folder, stage):
    """Checkpoints at 2, 4, 5; rows at 3 alone, so that each checkpoint has batches that are counted but not logged."""
    settings = {"max_steps": 5, "save_steps": 2, "logging_steps": 3, "gradient_accumulation_steps": 2}
    return small_recipe(folder, *(f"{stage}.{key}={value}" for key, value in settings.items()))


def left_by(run, stage):
    """All that a stage leaves but for what the clock writes."""
    adapter = (run.stage(stage) / "adapter_model.safetensors").read_bytes()
    rows = list(map(untimed, read_jsonl(run.stage(stage) / "metrics.jsonl")))
    return adapter, rows, untimed(run.read_summary(stage))


@pytest.fixture(scope="module", params=STAGES)
def whole(request, tmp_path_factory):
    """Stage, folder, and the run of it that nothing interrupted."""
    folder = tmp_path_factory.mktemp(request.param)
    run = Run(folder / "whole")
    STAGES[request.param][1](recipe_of(folder, request.param), run)
    return request.param, folder, run


@pytest.fixture
def interrupted(whole, tmp_path, monkeypatch):
    """`interrupted(step)`: a run stopped in that step, or after the last where it is None, before anything is left."""
    stage, folder, _ = whole
    module, train, trainer = STAGES[stage]

    def make(step):
        run = Run(tmp_path / "broken")

        def training_step(self, *args, real=trainer.training_step, **kwargs):
            if self.state.global_step == step:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        def save_results(*args, real=module.save_results):
            if step is None:
                raise KeyboardInterrupt
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "training_step", training_step)
            patch.setattr(module, "save_results", save_results)
            with pytest.raises(KeyboardInterrupt):
                train(recipe_of(folder, stage), run)
        assert not run.has_adapter(stage)
        return run

    return make


@pytest.mark.parametrize("step", [2, 3, 4, None])
def test_resumed_is_uninterrupted_bit_for_bit(whole, interrupted, step):
    stage, folder, expected = whole
    run = interrupted(step)
    STAGES[stage][1](recipe_of(folder, stage), run, resume=True)
    assert left_by(run, stage) == left_by(expected, stage)
    assert run.read_summary(stage)["steps"] == 5


def test_a_signal_ends_the_step_and_what_goes_on_is_uninterrupted(whole, tmp_path, monkeypatch):
    stage, folder, expected = whole
    _, train, trainer = STAGES[stage]
    run = Run(tmp_path / "stopped")

    def training_step(self, *args, real=trainer.training_step, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.undo()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", training_step)
    with pytest.raises(Stopped, match=rf"stopped by SIGTERM after step 3, with {stage}/checkpoint-3") as stopped:
        train(recipe_of(folder, stage), run)
    assert stopped.value.number == signal.SIGTERM
    assert fault_of(run.stage(stage) / "checkpoint-3") is None
    train(recipe_of(folder, stage), run, resume=True)
    assert left_by(run, stage) == left_by(expected, stage)


def test_other_pieces_of_a_step_do_not_make_an_epoch_shorter(tmp_path, monkeypatch):
    """Twice as many rows a step, which a resumed run does not take, would be half as many steps."""
    stage, (_, train, trainer) = "sft", STAGES["sft"]
    run, settings = Run(tmp_path / "run"), [f"{stage}.max_steps=-1", f"{stage}.save_steps=5"]

    def training_step(self, *args, real=trainer.training_step, **kwargs):
        if self.state.global_step == 6:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(tmp_path, *settings), run)
    train(small_recipe(tmp_path, *settings, f"{stage}.gradient_accumulation_steps=2"), run, resume=True)
    assert run.read_summary(stage)["steps"] == math.ceil(run.read_summary(stage)["train_examples"] / 4)


@pytest.mark.parametrize(
    ("setting", "what"), [("max_steps=1", "what it computes"), ("max_steps=5", "the loss|gradient")]
)
def test_steps_far_too_large_end_with_a_line_and_no_checkpoint(whole, tmp_path, setting, what):
    stage, folder, _ = whole
    run = Run(tmp_path / "exploded")
    sets = (f"{stage}.{setting}", f"{stage}.save_steps=9", f"{stage}.learning_rate=1e30", "data.test_size=0")
    with pytest.raises(
        UserError, match=rf"NaN or infinity in ({what}).*not_finite\.json.*lower {stage}\.learning_rate"
    ):
        STAGES[stage][1](small_recipe(folder, *sets, "data.preferences_test=null"), run)
    assert not list(run.stage(stage).glob("checkpoint-*"))
    assert not run.has_adapter(stage)
    assert json.loads((run.stage(stage) / "not_finite.json").read_text())["texts"]


@pytest.mark.parametrize("log", [None, b'{"step": 3, "lo', b"\xff\xfe someone's\n"])
def test_rows_come_back_from_the_checkpoint_whatever_the_log_is(whole, interrupted, log):
    stage, folder, expected = whole
    run = interrupted(4)
    metrics = run.stage(stage) / "metrics.jsonl"
    metrics.unlink() if log is None else metrics.write_bytes(metrics.read_bytes() + log)
    STAGES[stage][1](recipe_of(folder, stage), run, resume=True)
    assert left_by(run, stage) == left_by(expected, stage)


def test_two_checkpoints_are_kept_and_whole(whole):
    stage, _, run = whole
    names = sorted(path.name for path in run.stage(stage).glob("checkpoint-*"))
    assert names == ["checkpoint-4", "checkpoint-5"]
    assert [fault_of(run.stage(stage) / name) for name in names] == [None, None]


def test_a_damaged_checkpoint_is_passed_over_and_said(whole, interrupted, caplog):
    stage, folder, expected = whole
    run = interrupted(None)
    damaged = run.stage(stage) / "checkpoint-5" / "trainer_state.json"
    damaged.write_text(damaged.read_text()[:-20])
    with caplog.at_level("WARNING", logger="lorarlhf"):
        STAGES[stage][1](recipe_of(folder, stage), run, resume=True)
    said = f"{damaged.parent}: trainer_state.json is not as it was written; going on from checkpoint-4"
    assert [record.getMessage() for record in caplog.records].count(said) == 1
    assert left_by(run, stage) == left_by(expected, stage)


def test_a_checkpoint_of_an_old_format_is_refused_in_one_line(whole, tmp_path):
    stage, folder, expected = whole
    run = Run(tmp_path / "old")
    shutil.copytree(expected.path, run.path)
    for path in run.stage(stage).glob("checkpoint-*/manifest.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint to resume from .*has no manifest\.json") as error:
        STAGES[stage][1](recipe_of(folder, stage), run, resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments(stage):
    done = subprocess.run(
        [sys.executable, str(KILLS), "--stage", stage, "--kills", "2", "--times", "2", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    result = json.loads(done.stdout)
    assert done.returncode == 0, result
    assert result["kills"] == 2
    assert result["identical"] == result["runs"] > 0

"""Going on with a run: what may be told otherwise, and what stands in the way."""

import shutil

import pytest
from demo_runs import save_random_adapter, small_recipe

from lorarlhf.errors import UserError
from lorarlhf.manifest import written_whole
from lorarlhf.run import Run
from lorarlhf.stages import outputs, pipeline, ppo, reward, sft
from lorarlhf.stages.beginning import checkpoint_to_go_on_from
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward
from lorarlhf.stages.roles import find_reward_adapter
from lorarlhf.stages.settings import other_settings
from lorarlhf.stages.sft import train_sft
from lorarlhf.stopwatch import Stopwatch


@pytest.fixture
def begun(tmp_path):
    """`begun(stage)`: a run in which the stage has got to its second checkpoint, and the recipe."""

    def make(stage, *sets):
        recipe, run = small_recipe(tmp_path, *sets), Run(tmp_path / "run")
        run.write_recipe(recipe, stage)
        for number in (1, 2):
            with written_whole(run.stage(stage) / f"checkpoint-{number}") as part:
                (part / "state").write_text("{}")
        return recipe, run

    return make


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("ppo", "ppo.learning_rate=0.5"),
        ("ppo", "ppo.iterations=1"),
        ("ppo", "ppo.eval_every=0"),
        ("ppo", "ppo.advantage_estimator=rloo"),
        ("sft", "sft.weight_decay=0.1"),
        ("sft", "sft.max_steps=2"),
        ("sft", "lora.r=4"),
        ("reward", "reward.label_smoothing=0.1"),
        ("reward", "data.max_length=64"),
        ("reward", "data.preferences=other.jsonl"),
        ("reward", "seed=3"),
    ],
)
def test_other_settings_are_listed_and_refused(begun, tmp_path, stage, setting):
    _, run = begun(stage)
    key, _, value = setting.partition("=")
    with pytest.raises(UserError) as error:
        checkpoint_to_go_on_from(small_recipe(tmp_path, setting), run, stage, resume=True)
    message = str(error.value)
    assert message.startswith(f"--resume: {run.stage(stage)} was begun with other settings (")
    assert f"{'lora.r' if key == 'lora.r' else key} " in message
    assert value.strip('"') in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("ppo", ["ppo.iterations=9", "ppo.save_every=5", "ppo.micro_batch_tokens=512", "ppo.stop_when.kl=3"]),
        ("ppo", ["ppo.on_nan=skip", "ppo.eval_every=7", "sft.learning_rate=2", "reward.max_steps=1"]),
        ("sft", ["sft.max_steps=9", "sft.save_steps=1", "sft.gradient_accumulation_steps=2", "ppo.kl_coef=1"]),
        ("reward", ["reward.per_device_train_batch_size=2", "reward.logging_steps=2", "reward.save_total_limit=9"]),
    ],
)
def test_what_decides_nothing_may_change_and_a_run_may_go_further(begun, tmp_path, stage, settings):
    _, run = begun(stage)
    checkpoint = checkpoint_to_go_on_from(small_recipe(tmp_path, *settings), run, stage, resume=True)
    assert checkpoint == run.stage(stage) / "checkpoint-2"


def test_a_finished_stage_of_a_whole_recipe_is_not_one_of_fewer_steps(begun, tmp_path):
    _, run = begun("sft")
    longer, rarer = (small_recipe(tmp_path, setting) for setting in ("sft.max_steps=9", "sft.save_steps=7"))
    assert other_settings(longer, run, "sft", begun=False) == ["sft.max_steps 3, not 9"]
    assert other_settings(rarer, run, "sft", begun=False) == []


def test_a_start_anew_says_what_it_will_move_before_it_does(begun, caplog):
    recipe, run = begun("ppo")
    assert checkpoint_to_go_on_from(recipe, run, "ppo", resume=False) is None
    said = (
        f"{run.stage('ppo')} holds an interrupted run up to checkpoint-2; it will be moved aside, and `lorarlhf ppo "
        f"--resume --output-dir {run.path}` goes on with it instead"
    )
    assert said in caplog.text
    run.write_summary("ppo", {"iterations": 2})
    checkpoint_to_go_on_from(recipe, run, "ppo", resume=False)
    assert "holds a finished run up to checkpoint-2" in caplog.text


def test_with_no_whole_checkpoint_all_faults_and_what_is_left_are_told(begun):
    recipe, run = begun("ppo")
    (run.stage("ppo") / "checkpoint-1" / "state").unlink()
    (run.stage("ppo") / "checkpoint-2" / "state").write_text("[]")
    (run.stage("ppo") / "best").mkdir()
    (run.stage("ppo") / "best" / "adapter_config.json").touch()
    with pytest.raises(UserError) as error:
        checkpoint_to_go_on_from(recipe, run, "ppo", resume=True)
    assert str(error.value) == (
        f"{run.stage('ppo')}: no checkpoint to resume from (checkpoint-2: state is not as it was written; "
        f"checkpoint-1: state is missing); {run.stage('ppo') / 'best'} holds the best adapter so far; begin again with "
        "`lorarlhf ppo` without --resume, which moves the folder aside"
    )


def test_ppo_does_not_start_from_the_bare_base_where_sft_was_interrupted(begun):
    recipe, run = begun("sft")
    save_random_adapter(recipe, run, "reward")
    expected = rf"sft: was begun and has not finished; end it with `lorarlhf sft --resume --output-dir {run.path}`, or"
    with pytest.raises(UserError, match=expected):
        train_ppo(recipe, run)
    with pytest.raises(UserError, match=expected):
        pipeline.run_recipe(recipe.model_copy(update={"stages": ["ppo"]}), run)
    save_random_adapter(recipe, run, "sft")
    assert not run.is_interrupted("sft")


def test_functions_do_not_take_the_place_of_an_interrupted_reward_model(begun):
    _, run = begun("reward")
    with pytest.raises(UserError, match="reward: was begun and has not finished"):
        find_reward_adapter(1.0, True, run, None)
    assert find_reward_adapter(0.0, True, run, None) is None


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_start_that_fails_late_has_moved_nothing(begun, stage, monkeypatch):
    recipe, run = begun(stage)
    if stage == "ppo":
        save_random_adapter(recipe, run, "reward")
    before = sorted(path.name for path in run.path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    monkeypatch.setattr(outputs, "LEAST_DISK", 0)  # which is looked at before anything is loaded
    train = {"sft": train_sft, "ppo": train_ppo}[stage]
    with pytest.raises(UserError, match=rf"{stage}: 0\.00 GiB are free there, and checkpoints and adapters can take"):
        train(recipe, run)
    assert sorted(path.name for path in run.path.iterdir()) == before
    assert (run.stage(stage) / "checkpoint-2" / "state").is_file()


def test_every_stage_is_one_writers(tmp_path, monkeypatch):
    recipe = small_recipe(tmp_path)
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "run.lock").write_text('{"process": 1, "host": "elsewhere", "started": 1.0}')
    for begin in (sft.train_sft, reward.train_reward, ppo.train_ppo, pipeline.run_recipe):
        with pytest.raises(UserError, match="process 1 on elsewhere writes there"):
            begin(recipe, run)


@pytest.mark.parametrize(
    ("train", "sets"),
    [
        (train_sft, ["sft.save_steps=2", "sft.max_steps=3"]),
        (train_reward, ["reward.save_steps=2", "reward.max_steps=3"]),
        (train_ppo, ["ppo.save_every=1", "ppo.iterations=2", "ppo.eval_every=0"]),
    ],
    ids=["sft", "reward", "ppo"],
)
def test_seconds_are_those_of_all_starts(train, sets, tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    if train is train_ppo:
        train_reward(small_recipe(tmp_path, "reward.max_steps=1"), run)
    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "seconds", 1000.0)
        train(small_recipe(tmp_path, *sets), run)
    assert 1000 < train(small_recipe(tmp_path, *sets), run, resume=True)["seconds"] < 1500

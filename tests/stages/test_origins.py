"""A stage that goes on finds the adapters that it was begun with."""

import shutil

import pytest
from demo_runs import save_random_adapter, small_recipe

from lorarlhf.errors import UserError
from lorarlhf.run import Run
from lorarlhf.stages.dry_run import steps
from lorarlhf.stages.origins import ORIGINS
from lorarlhf.stages.ppo import train_ppo


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder, and a run whose ppo has two checkpoints."""
    folder = tmp_path_factory.mktemp("origins")
    recipe, run = small_recipe(folder, "ppo.save_every=1", "ppo.eval_every=0"), Run(folder / "run")
    for stage in ("sft", "reward"):
        save_random_adapter(recipe, run, stage)
    train_ppo(recipe, run)
    return folder, run


@pytest.fixture
def again(trained, tmp_path):
    """A longer recipe, and a copy of the run."""
    folder, run = trained
    longer = small_recipe(folder, "ppo.save_every=1", "ppo.eval_every=0", "ppo.iterations=3")
    return longer, Run(shutil.copytree(run.path, tmp_path / "run"))


def retrain(run, stage):
    """The same files, with other numbers in them."""
    weights = run.stage(stage) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)


def refused(recipe, run, **options):
    before = sorted(run.path.rglob("*"))
    said = []
    for go_on in (
        lambda: train_ppo(recipe, run, resume=True, **options),
        lambda: list(steps("ppo", recipe, run, resume=True, **options)),  # a dry run
    ):
        with pytest.raises(UserError) as error:
            go_on()
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    assert sorted(run.path.rglob("*")) == before
    return said[0]


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_one_that_was_trained_again_is_refused(again, stage):
    recipe, run = again
    retrain(run, stage)
    said = refused(recipe, run)
    assert said.startswith(f"--resume: {run.stage('ppo')} was begun with another adapter of {stage} than lies in")
    assert "begin anew without --resume" in said
    retrain(run, stage)  # put back
    train_ppo(recipe, run, resume=True)
    assert run.read_summary("ppo")["iterations"] == 3


def test_one_that_has_gone_and_one_that_has_come(again):
    recipe, run = again
    (run.stage("sft") / "adapter_config.json").rename(run.path / "aside")
    (run.stage("sft") / "recipe.yaml").unlink(missing_ok=True)
    assert "with an adapter of sft, and there is none now" in refused(recipe, run)
    (run.path / "aside").rename(run.stage("sft") / "adapter_config.json")
    (run.stage("ppo") / ORIGINS).write_text('{"sft": null}')
    said = refused(recipe, run)
    assert f"without an adapter of sft, and there is one now in {run.stage('sft')}" in said
    assert " and without an adapter of reward" in said


def test_a_reward_adapter_from_another_place_is_told_by_what_it_holds(again, tmp_path):
    recipe, run = again
    elsewhere = run.stage("reward").rename(tmp_path / "elsewhere")
    assert list(steps("ppo", recipe, run, str(elsewhere), resume=True))
    retrain(Run(tmp_path), "elsewhere")
    assert f"than lies in {elsewhere} now" in refused(recipe, run, reward=str(elsewhere))


def test_a_run_of_an_earlier_version_says_nothing_of_them(again, caplog):
    recipe, run = again
    (run.stage("ppo") / ORIGINS).unlink()
    retrain(run, "sft")
    assert list(steps("ppo", recipe, run, resume=True))
    assert "does not say which adapters it was begun with" in caplog.text

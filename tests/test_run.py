"""The folder of a run."""

import json

import pytest

from lorarlhf.errors import UserError
from lorarlhf.manifest import written_whole
from lorarlhf.recipe.load import Option, load_recipe
from lorarlhf.run import Run, write_json


def test_a_recipe_comes_back_as_it_was(tmp_path):
    recipe = load_recipe("demo", sets=["ppo.learning_rate=3e-5", "data.prompts=null", "seed=7"])
    run = Run(tmp_path / "new" / "run")
    run.write_recipe(recipe)
    assert run.read_recipe() == recipe


def test_a_folder_without_a_recipe_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: not a run, there is no recipe.yaml; give the --output-dir of"):
        Run(tmp_path).read_recipe()


def test_a_stage_has_an_adapter_once_its_config_is_written(tmp_path):
    run = Run(tmp_path)
    assert not run.has_adapter("sft")
    (run.stage("sft") / "checkpoint-3").mkdir(parents=True)
    (run.stage("sft") / "adapter_model.safetensors").touch()
    assert not run.has_adapter("sft")
    (run.stage("sft") / "adapter_config.json").touch()
    assert run.has_adapter("sft")
    assert not run.has_adapter("ppo")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_place_of_a_stage_is_neither_read_nor_written_to(tmp_path, there):
    elsewhere, run = tmp_path / "elsewhere", Run(tmp_path / "run")
    if there:
        elsewhere.mkdir()
        (elsewhere / "adapter_config.json").touch()
    run.write_recipe(load_recipe("demo"))
    (run.path / "ppo").symlink_to(elsewhere)
    for use in (
        lambda: run.has_adapter("ppo"),
        lambda: run.adapter("ppo"),
        lambda: run.last_stage(),
        lambda: run.read_recipe(stage="ppo"),
        lambda: run.write_recipe(load_recipe("demo"), "ppo"),
        lambda: run.write_summary("ppo", {}),
    ):
        with pytest.raises(UserError, match="ppo: is a link, and all of a run lies in its folder"):
            use()
    assert [path.name for path in tmp_path.rglob("*")].count("summary.json") == 0


@pytest.fixture
def checkpoints(tmp_path):
    """A run with checkpoints of two stages."""
    run = Run(tmp_path)
    for stage, role, numbers in (("ppo", "policy", (2, 4, 10)), ("reward", "reward", (5,))):
        for number in numbers:
            with written_whole(run.stage(stage) / f"checkpoint-{number}") as part:
                (part / role).mkdir()
                (part / role / "adapter_model.safetensors").write_text(str(number))
    return run


def test_adapters_of_checkpoints(checkpoints):
    folder = checkpoints.stage("ppo")
    assert checkpoints.adapter("ppo", "last") == folder / "checkpoint-10" / "policy"
    assert checkpoints.adapter("ppo", "4") == checkpoints.adapter("ppo", 4) == folder / "checkpoint-4" / "policy"
    assert checkpoints.adapter("reward", "last") == checkpoints.stage("reward") / "checkpoint-5" / "reward"
    with pytest.raises(UserError, match="no adapter there; run `lorarlhf ppo"):
        checkpoints.adapter("ppo", "best")


@pytest.mark.parametrize(
    ("stage", "choice", "message"),
    [
        ("ppo", "3", "--checkpoint 3: {folder} has no such checkpoint; there is 2, 4, 10, last, best"),
        ("ppo", "newest", "--checkpoint newest: {folder} has no such checkpoint; there is 2, 4, 10, last, best"),
        ("sft", "last", "--checkpoint last: {folder} has no such checkpoint; there is best"),
        (
            "ppo",
            "2",
            "--checkpoint 2: {folder}/checkpoint-2: policy/adapter_model.safetensors is missing; there is 2, ",
        ),
    ],
)
def test_a_checkpoint_that_is_not_there(checkpoints, stage, choice, message):
    (checkpoints.stage("ppo") / "checkpoint-2" / "policy" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError) as error:
        checkpoints.adapter(stage, choice)
    assert str(error.value).startswith(message.format(folder=checkpoints.stage(stage)))
    assert "\n" not in str(error.value)


def test_the_last_stage_done_is_chosen(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(UserError, match="not a run"):
        run.last_stage()
    run.write_recipe(load_recipe("demo"))
    with pytest.raises(UserError, match="no stage of this run has an adapter"):
        run.last_stage()
    for stage in ("reward", "sft", "ppo"):
        with pytest.raises(
            UserError, match=f"{stage}: no adapter there; run `lorarlhf {stage} --recipe .*recipe.yaml --output-dir"
        ):
            run.adapter(stage)
        run.stage(stage).mkdir()
        (run.stage(stage) / "adapter_config.json").touch()
        assert run.adapter(stage) == tmp_path / stage
        assert run.last_stage() == stage


def test_a_run_is_read_with_changes(tmp_path):
    run = Run(tmp_path)
    run.write_recipe(load_recipe("demo"))
    recipe = run.read_recipe({"data.prompts_test": Option("--dataset", "mine.jsonl")}, ["seed=9"])
    assert (recipe.data.prompts_test, recipe.seed) == ("mine.jsonl", 9)
    assert run.read_recipe() == load_recipe("demo")


def test_each_stage_keeps_the_recipe_it_was_run_with(tmp_path):
    run = Run(tmp_path)
    run.write_recipe(load_recipe("demo", sets=["seed=1"]), "reward")
    run.write_recipe(load_recipe("demo", sets=["seed=2"]), "ppo")
    assert [run.read_recipe(stage=stage).seed for stage in ("reward", "ppo", None)] == [1, 2, 2]
    assert run.read_recipe(sets=["ppo.iterations=3"], stage="reward").ppo.iterations == 3
    assert run.read_recipe(stage="sft").seed == 2, "a stage of an earlier version has none: the run's"


def test_summaries(tmp_path):
    run = Run(tmp_path)
    assert run.read_summary("reward") == {}
    summary = {"eval_accuracy": 0.5, "nested": {"best": None}, "text": "naïve"}
    run.write_summary("reward", summary)
    assert run.read_summary("reward") == summary
    assert json.loads((tmp_path / "reward" / "summary.json").read_text(encoding="utf-8")) == summary


def test_json_files_end_with_a_newline_and_make_their_folder(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, [1])
    assert path.read_text() == "[\n  1\n]\n"

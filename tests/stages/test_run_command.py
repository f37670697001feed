"""`lorarlhf run`: the whole recipe with one line, which goes on where it was interrupted."""

import json
import os
import shutil
from collections import Counter

import pytest
from demo_runs import small_recipe
from pages import run as command
from safetensors.torch import load_file, save_file

from lorarlhf.backbone.load import load_backbone
from lorarlhf.data import sources
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run
from lorarlhf.stages import pipeline, ppo


@pytest.fixture
def loads(monkeypatch):
    """How often the base model was loaded for training and evaluation."""
    counted = []
    monkeypatch.setattr(pipeline, "load_backbone", lambda *args: counted.append(args) or load_backbone(*args))
    return counted


def headings(text: str) -> list[str]:
    """Of the steps, without what is foretold of their time."""
    return [line.partition(", about ")[0] for line in text.splitlines() if line[:1].isdigit() and "/" in line[:3]]


def test_the_whole_recipe_and_again(tmp_path, capsys, loads):
    recipe, run = small_recipe(tmp_path, "stages=[reward,ppo,evaluate,report,export]"), Run(tmp_path / "run")
    pipeline.run_recipe(recipe, run)
    out = capsys.readouterr().out
    assert headings(out) == ["1/5 reward model", "2/5 policy", "3/5 evaluate", "4/5 report", "5/5 export"]
    assert "GiB at most" in out.partition("1/5")[0]
    said = ["reward 0/3  first step", "reward 3/3  evaluation"]
    assert [line for line in out.splitlines() if line in said] == said
    before = out.partition("3/5")[0]
    assert [name for name in ("evaluation", "rollout", "score", "update") if f"ppo 0/2  {name}\n" not in before] == []
    assert len(loads) == 1
    evaluation = json.loads((run.stage("ppo") / "evaluation.json").read_text())
    assert evaluation["prompts"] == 8
    assert (run.path / "report.html").is_file()
    assert (run.path / "export" / "model.safetensors").is_file()

    summaries = {stage: (run.stage(stage) / "metrics.jsonl").stat().st_mtime_ns for stage in ("reward", "ppo")}
    pipeline.run_recipe(recipe, run)
    again = headings(capsys.readouterr().out)
    assert again == ["1/5 reward model, done already", "2/5 policy, done already", *headings(out)[2:]]
    assert summaries == {stage: (run.stage(stage) / "metrics.jsonl").stat().st_mtime_ns for stage in summaries}
    assert json.loads((run.stage("ppo") / "evaluation.json").read_text()) == evaluation


def test_each_file_of_data_is_read_once_by_all_that_trains_and_none_stays_in_memory(tmp_path, monkeypatch):
    read, kept = Counter(), []

    def train(*args, real=ppo.train):
        kept.append(dict(sources.ROW_CACHE.rows))
        real(*args)

    def reader(path, name, real=sources.READERS["jsonl"]):
        yield from real(path, name)
        read[path.name] += 1

    monkeypatch.setitem(sources.READERS, "jsonl", reader)
    monkeypatch.setattr(ppo, "train", train)
    sets = ("stages=[reward,ppo,evaluate]", "data.prompts=null", "data.prompts_test=null")  # all of the comparisons
    pipeline.run_recipe(small_recipe(tmp_path, *sets), tmp_path / "run")
    assert read == {"preferences.jsonl": 1, "preferences_test.jsonl": 2}, "once more to evaluate on"
    assert kept == [{}]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A run whose reward model and policy are done, and its recipe."""
    folder = tmp_path_factory.mktemp("made")
    recipe = small_recipe(folder, "stages=[reward,ppo]", "ppo.save_every=1")
    pipeline.run_recipe(recipe, folder / "run")
    return folder / "run", recipe


@pytest.fixture
def copied(made_once, tmp_path):
    """A copy of it, in which each file is older than those that it was made from."""
    made, recipe = made_once
    run = Run(shutil.copytree(made, tmp_path / "run"))
    for stage, seconds in (("reward", 2_000_000_000), ("ppo", 1_000_000_000)):
        for path in run.stage(stage).rglob("*"):
            os.utime(path, (seconds, seconds))
    os.utime(run.stage("ppo") / "summary.json", (0, 0))
    return run, recipe


def test_a_copy_of_a_run_is_as_done_as_the_run(copied, capsys):
    run, recipe = copied
    pipeline.run_recipe(recipe, run)
    assert headings(capsys.readouterr().out) == ["1/2 reward model, done already", "2/2 policy, done already"]


def test_the_command_ends_with_what_to_type_next(copied, monkeypatch, capsys):
    run, _ = copied
    assert not command(monkeypatch, ["run", "--output-dir", str(run.path)])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"lorarlhf chat --run {run.path}")


def test_a_policy_of_an_older_reward_model_is_trained_again(copied, capsys):
    run, recipe = copied
    weights = run.stage("reward") / "adapter_model.safetensors"
    save_file({name: 2 * x for name, x in load_file(weights).items()}, weights)
    pipeline.run_recipe(recipe, run)
    assert headings(capsys.readouterr().out) == ["1/2 reward model, done already", "2/2 policy"]
    assert (run.path / "ppo.1").is_dir()  # moved aside and not gone on with


def test_a_summary_of_fewer_iterations_than_the_newest_checkpoint_is_not_the_end(copied, capsys):
    """A run that had ended, went on further, and was stopped."""
    run, recipe = copied
    run.write_summary("ppo", {**run.read_summary("ppo"), "iterations": 1})
    pipeline.run_recipe(recipe, run)
    assert headings(capsys.readouterr().out) == ["1/2 reward model, done already", "2/2 policy"]
    assert run.read_summary("ppo")["iterations"] == 2
    assert not (run.path / "ppo.1").exists()  # gone on with


def test_a_dry_run_says_what_is_done(copied, monkeypatch, capsys):
    run, _ = copied

    def said(*options):
        assert not command(monkeypatch, ["run", "--output-dir", str(run.path), "--dry-run", *options])
        return capsys.readouterr().out

    whole = said()
    assert f"done         reward, in {run.stage('reward')}" in whole
    assert f"done         ppo, in {run.stage('ppo')}" in whole
    assert "would" not in whole
    shutil.rmtree(run.stage("ppo"))
    rest = said()
    assert "done         reward" in rest
    assert "would train  ppo on" in rest
    assert "would train  reward" not in rest
    assert said("--anew").count("would train ") == 2


def test_the_export_is_as_the_recipe_says_now(tmp_path):
    recipe, run = small_recipe(tmp_path, "stages=[reward,export]"), Run(tmp_path / "run")
    pipeline.run_recipe(recipe, run)
    assert (run.path / "export" / "model.safetensors").is_file()
    pipeline.run_recipe(small_recipe(tmp_path, "stages=[reward,export]", "export.merge=false"), run)
    assert (run.path / "export" / "adapter_model.safetensors").is_file()


def test_a_stage_that_has_its_adapter_and_no_summary_is_not_done(tmp_path, capsys):
    recipe, run = small_recipe(tmp_path, "stages=[reward]"), Run(tmp_path / "run")
    pipeline.run_recipe(recipe, run)
    summary = run.read_summary("reward")
    (run.stage("reward") / "summary.json").unlink()
    pipeline.run_recipe(recipe, run)
    assert run.read_summary("reward")["eval_accuracy"] == summary["eval_accuracy"]
    assert headings(capsys.readouterr().out)[-1] == "1/1 reward model"


def test_an_interrupted_stage_goes_on(tmp_path, capsys, monkeypatch):
    recipe, run = small_recipe(tmp_path, "stages=[reward,ppo]", "ppo.save_every=1"), Run(tmp_path / "run")

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lorarlhf.stages.ppo.peak_memory_bytes", stopped)  # after the last iteration, before the end
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_recipe(recipe, run)
    rows = (run.stage("ppo") / "metrics.jsonl").read_text()
    pipeline.run_recipe(recipe, run)
    assert run.read_summary("ppo")["iterations"] == 2
    assert (run.stage("ppo") / "metrics.jsonl").read_text() == rows  # no iteration was done twice
    assert not (run.path / "ppo.1").exists()


def test_other_settings_are_told_and_nothing_is_moved(tmp_path):
    recipe, run = small_recipe(tmp_path, "stages=[reward]"), Run(tmp_path / "run")
    pipeline.run_recipe(recipe, run)
    other = small_recipe(tmp_path, "stages=[reward]", "reward.learning_rate=0.5", "seed=3", "ppo.kl_coef=0.3")
    with pytest.raises(UserError) as error:
        pipeline.run_recipe(other, run)
    message = str(error.value)
    assert "reward.learning_rate 0.001, not 0.5; seed 42, not 3" in message
    assert "kl_coef" not in message  # of no stage that is done
    assert "--anew" in message
    pipeline.run_recipe(other, run, resume=False)
    assert (run.path / "reward.1").is_dir()
    assert run.read_recipe(stage="reward").reward.learning_rate == 0.5


def test_a_missing_file_of_a_later_stage_is_told_first(tmp_path, loads):
    recipe = small_recipe(tmp_path, "data.prompts=nowhere.jsonl", "data.prompts_test=null")
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        pipeline.run_recipe(recipe, tmp_path / "run")
    assert not loads
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reward.optim=adamw_troch", "reward.optim: transformers knows no adamw_troch; did you mean adamw_torch"),
        ("ppo.report_to=[wandb]", "ppo.report_to: wandb is not installed; `pip install wandb`"),
        ("model.attn_implementation=flash_attention_2", "flash_attention_2 needs a CUDA GPU"),
        ("stages=[ppo]", "no reward adapter there"),
        ("ppo.reward_model_weight=0", "nothing gives a reward"),
        ('ppo.reward_functions=["nowhere:score"]', "nowhere"),
        ("reward.objective=regression", "score"),
    ],
)
def test_what_cannot_work_is_told_before_the_model_is_loaded(tmp_path, loads, setting, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        pipeline.run_recipe(small_recipe(tmp_path, setting), tmp_path / "run")
    assert not loads
    assert not (tmp_path / "run").exists()


def test_nothing_held_out_is_told_first(tmp_path, loads):
    recipe = small_recipe(tmp_path, "data.prompts_test=null", "data.test_size=0", "ppo.eval_every=0")
    with pytest.raises(UserError, match="leaves nothing to test ppo on"):
        pipeline.run_recipe(recipe, tmp_path / "run")
    assert not loads


@pytest.mark.parametrize("stages", ["[]", "[ppo,reward]", "[reward,reward]"])
def test_stages_out_of_order_are_refused(stages):
    with pytest.raises(UserError, match="in this order and each once"):
        load_recipe("demo", sets=[f"stages={stages}"])

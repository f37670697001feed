"""`lorarlhf run`: the whole recipe with one line, which goes on where it was interrupted."""

import json
import os

import pytest
from demo_runs import small_recipe

from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run
from lorarlhf.stages import pipeline


@pytest.fixture
def loads(monkeypatch):
    """How often the base model was loaded for training and evaluation."""
    counted = []
    monkeypatch.setattr(pipeline, "load_backbone", lambda *args: counted.append(args) or load_backbone(*args))
    return counted


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1].isdigit() and "/" in line[:3]]


def test_the_whole_recipe_then_nothing_left_to_do(tmp_path, capsys, loads):
    recipe, run = small_recipe(tmp_path), Run(tmp_path / "run")
    pipeline.run_recipe(recipe, run)
    out = capsys.readouterr().out
    assert headings(out) == ["1/4 reward model", "2/4 policy", "3/4 evaluate", "4/4 export"]
    assert "GiB at most" in out.partition("1/4")[0]
    assert len(loads) == 1
    evaluation = json.loads((run.stage("ppo") / "evaluation.json").read_text())
    assert evaluation["prompts"] == 8
    assert (run.path / "export" / "model.safetensors").is_file()

    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    pipeline.run_recipe(recipe, run)
    again = capsys.readouterr().out
    assert all(line.endswith(", done already") for line in headings(again))
    assert len(headings(again)) == 4
    assert len(loads) == 1
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before
    figures = [line for line in out.splitlines() if line.startswith("   ")]
    assert [line for line in again.splitlines() if line.startswith("   ")] == figures


def test_what_was_made_of_older_weights_is_made_again(tmp_path, capsys):
    recipe, run = small_recipe(tmp_path, "stages=[reward,evaluate,report]"), Run(tmp_path / "run")
    pipeline.run_recipe(recipe, run)
    evaluation = run.stage("reward") / "evaluation.json"
    weights = (run.stage("reward") / "adapter_model.safetensors").stat()
    os.utime(evaluation, ns=(weights.st_atime_ns, weights.st_mtime_ns - 1))
    capsys.readouterr()
    pipeline.run_recipe(recipe, run)
    assert headings(capsys.readouterr().out) == ["1/3 reward model, done already", "2/3 evaluate", "3/3 report"]
    assert (run.path / "report.html").is_file()
    assert evaluation.stat().st_mtime_ns > weights.st_mtime_ns


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
        ("ppo.report_to=[comet_ml]", "ppo.report_to: comet_ml is not installed"),
        ("model.attn_implementation=flash_attention_2", "flash_attention_2 needs a CUDA GPU"),
        ("stages=[ppo]", "no reward adapter there"),
    ],
)
def test_what_cannot_work_is_told_before_the_model_is_loaded(tmp_path, loads, setting, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        pipeline.run_recipe(small_recipe(tmp_path, setting), tmp_path / "run")
    assert not loads
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stages", ["[]", "[ppo,reward]", "[reward,reward]"])
def test_stages_out_of_order_are_refused(stages):
    with pytest.raises(UserError, match="in this order and each once"):
        load_recipe("demo", sets=[f"stages={stages}"])

"""`lorarlhf` as a person or a script meets it: stages that run, and what they leave."""

import json
from pathlib import Path

import pytest
from demo_runs import read_jsonl, save_random_adapter, small_recipe, small_sets
from forked import Forked

from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run

STAGES = ["sft", "reward", "ppo"]


def as_options(sets):
    return [part for text in sets for part in ("--set", text)]


def test_a_stage_goes_on_with_the_recipe_of_its_run(command, monkeypatch, tmp_path):
    Run(tmp_path / "mine").write_recipe(load_recipe("demo", sets=["seed=7"]), "sft")
    Run(tmp_path / "mine").write_recipe(load_recipe("demo", sets=["seed=8"]), "reward")
    told = []
    monkeypatch.setattr("lorarlhf.stages.sft.train_sft", lambda *args: told.append(args) or {"eval_examples": 0})
    code, out, _ = command("sft", "--resume", "--output-dir", "mine", "--set", "sft.max_steps=5")
    assert code == 0
    ((recipe, run, resume),) = told
    assert (recipe.seed, recipe.sft.max_steps, run.path, resume) == (7, 5, Path("mine"), True)
    assert "adapter in mine/sft" in out


def test_a_log_file_takes_what_is_said_and_the_terminal_may_close(tmp_path):
    log = tmp_path / "log.txt"
    forked = Forked(["sft", "--recipe", "demo", "--dataset", str(tmp_path), "--log-file", str(log)], tmp_path / "out")
    assert forked.finish() == [2]
    assert str(tmp_path) in log.read_text()
    assert forked.said("err") + forked.said("out") == ""


def test_the_stages_one_after_another(command, tmp_path, monkeypatch):
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *args, **kwargs: pytest.fail("phoned home"))
    monkeypatch.delenv("CI", raising=False)  # where it is set, TRL keeps quiet by itself
    options = ["--recipe", "demo", *as_options(small_sets(tmp_path / "data")), "--output-dir", "out"]
    for stage in STAGES:
        code, out, err = command(stage, *options)
        assert code == 0, err
        folder = tmp_path / "out" / stage
        assert json.loads((folder / "summary.json").read_text())["seconds"] > 0
        assert len(read_jsonl(folder / "metrics.jsonl")) >= 3
        assert "\x1b" not in out
        assert out.splitlines()[0].startswith(f"{stage} ")
        assert f"adapter in {Path('out') / stage}" in out.splitlines()[-1]
    assert "held-out reward" in out
    assert (tmp_path / "out" / "recipe.yaml").is_file()
    assert Run(tmp_path / "out").read_summary("ppo")["reference"] == "sft"


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_nothing_held_out_is_said(command, tmp_path, stage):
    sets = [*small_sets(tmp_path / "data"), "data.test_size=0", "data.preferences_test=null"]
    code, out, err = command(stage, "--recipe", "demo", *as_options(sets))
    assert code == 0, err
    assert f"{stage}: no held-out examples; adapter in" in out


def test_ppo_with_nothing_held_out_is_refused(command, tmp_path):
    sets = [*small_sets(tmp_path / "data"), "data.test_size=0", "data.prompts_test=null"]
    sets += ['ppo.reward_functions=["demo_runs:letter_e"]', "requires=[demo_runs]"]
    code, _, err = command("ppo", "--recipe", "demo", *as_options(sets))
    assert code == 2
    assert "ppo.eval_every: data.test_size 0 leaves no held-out prompts" in err
    assert command("ppo", "--recipe", "demo", *as_options([*sets, "ppo.eval_every=0"]))[0] == 0


def test_the_script_on_its_own(script, tmp_path):
    """In a shell: a reward function of the current folder, an earlier run moved aside, and silence otherwise."""
    recipe = small_recipe(tmp_path)
    run = Run(tmp_path / "out")
    save_random_adapter(recipe, run, "reward")
    run.stage("ppo").mkdir()
    (run.stage("ppo") / "precious").touch()
    (tmp_path / "mine.py").write_text("def short(prompts, responses):\n    return [-len(r) / 10 for r in responses]\n")
    sets = [*small_sets(tmp_path / "data"), 'ppo.reward_functions=["mine:short"]', "ppo.iterations=1"]
    code, out, err = script(tmp_path, "ppo", "--recipe", "demo", "--output-dir", "out", *as_options(sets))
    assert code == 0, err
    code_from, *rows, moved = err.splitlines()
    assert code_from == f"ppo.reward_functions: mine:short from {tmp_path / 'mine.py'}"
    assert moved == f"{Path('out/ppo')} held an earlier run; it is now {Path('out/ppo.1')}"
    assert [row.partition(": ")[2] for row in rows] == ["20 rows to train on", "8 rows to test on"]
    assert (tmp_path / "out" / "ppo.1" / "precious").exists()
    assert out.splitlines()[-1].startswith("ppo: adapter in out/ppo")

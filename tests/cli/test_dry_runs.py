"""Dry runs and help: what is said without loading anything."""

import re
import resource
import sys
from pathlib import Path

import pytest

from lorarlhf.recipe.shipped import list_recipes

STAGES = ["sft", "reward", "ppo"]


def test_dry_runs_of_recipes_from_the_hub_and_help_load_nothing_heavy(script, tmp_path):
    from_the_hub = [info.name for info in list_recipes() if info.name not in ("demo", "qwen3-1.7b-gsm8k-8gb")]
    program = f"""
import sys
from lorarlhf.cli.main import main
for recipe in {from_the_hub}:
    for stage in {STAGES}:
        sys.argv = ["lorarlhf", stage, "--recipe", recipe, "--dry-run"]
        try:
            main()
        except SystemExit as exit_:
            assert not exit_.code, (recipe, stage)
sys.argv = ["lorarlhf", "--help"]
try:
    main()
except SystemExit as exit_:
    assert not exit_.code
heavy = {{"torch", "transformers", "peft", "trl", "datasets", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    code, out, err = script(tmp_path, "-c", program, program=(sys.executable,))
    assert (code, err) == (0, "")
    assert out.count("would load ") == out.count("memory       see") == len(STAGES) * len(from_the_hub) >= 24
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_done(command, tmp_path):
    (tmp_path / "my.jsonl").write_text('{"prompt": "How much are the apples?"}\n')
    code, out, err = command(
        *("ppo", "--recipe", "demo", "--model", "my/model", "--dataset", "my.jsonl", "--output-dir", "here"),
        *("--set", "ppo.kl_coef=0.25", "--reward", "my/reward", "--dry-run"),
    )
    assert (code, err) == (0, "")
    assert "  kl_coef: 0.25\n" in out
    assert "would load   my/model (nf4), once" in out
    assert "would start  from the bare base model" in out
    assert "would score  with my/reward\n" in out
    assert "would train  ppo on my.jsonl" in out
    assert "would write  here/ppo" in out
    assert "would update policy and critic (PPO)" in out
    assert list(tmp_path.iterdir()) == [tmp_path / "my.jsonl"]


def test_a_dry_run_says_what_is_misspelt(command):
    code, _, err = command("ppo", "--recipe", "demo", "--dataset", "my.jsonl", "--dry-run")
    assert (code, err) == (2, "Error: my.jsonl: no such file; check the path\n")


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("reward", ["data.preferences=mine.csv"], "mine.csv: row 1: columns not recognised as comparisons"),
        ("sft", ["data.sft=mine.csv"], "mine.csv: row 1: columns not recognised as demonstrations"),
        ("ppo", ['ppo.reward_functions=["missing_rule:f"]'], "cannot import 'missing_rule:f': No module named"),
        ("ppo", ['ppo.reward_functions=["yaml:load"]'], "'yaml:load' is of the installed package yaml"),
        ("ppo", ["model.attn_implementation=flash_attention_2"], "flash_attention_2 needs a CUDA GPU"),
    ],
)
def test_a_dry_run_refuses_what_the_stage_would(command, tmp_path, monkeypatch, stage, changes, said):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed
    (tmp_path / "mine.csv").write_text("prompt\nHow much are the apples?\n")
    sets = [part for change in changes for part in ("--set", change)]
    code, _, err = command(stage, "--recipe", "demo", *sets, "--dry-run")
    assert code == 2
    assert said in err


def test_a_dry_run_says_where_the_reward_is_to_come_from(command, tmp_path):
    ppo = ("ppo", "--recipe", "demo", "--output-dir", "here", "--dry-run")
    assert "would score  with here/reward, which is not there yet\n" in command(*ppo)[1]
    assert "would score  with here/reward\n" in command("run", *ppo[1:])[1]
    (tmp_path / "rule.py").touch()
    rule = ("--set", 'ppo.reward_functions=[{"function": "rule:brief", "weight": 2}]')
    assert "would score  with rule:brief\n" in command(*ppo, *rule)[1]
    assert "would score  with my/reward, rule:brief\n" in command(*ppo, *rule, "--reward", "my/reward")[1]
    assert "with nothing" in command(*ppo, "--set", "ppo.reward_model_weight=0")[1]


def test_a_dry_run_knows_how_many_rows_are_wanted(command):
    wanted = ("--set", "data.max_examples=2000", "--set", "data.eval_examples=50")
    out = command("reward", "--recipe", "demo", "--dataset", "my.jsonl", *wanted, "--dry-run")[1]
    assert "would train  reward on at most 2,000 examples of my.jsonl" in out
    assert "would test   on at most 50 held-out examples" in out
    assert "at most" not in command("reward", "--recipe", "demo", "--dry-run")[1]


def test_a_dry_run_knows_what_has_no_critic(command):
    out = command("ppo", "--recipe", "demo", "--set", "ppo.advantage_estimator=rloo", "--dry-run")[1]
    assert "would update the policy, without a critic (RLOO, 4 responses to each prompt)" in out


def test_a_dry_run_starts_from_sft_if_it_is_there(command, tmp_path):
    (tmp_path / "runs" / "demo" / "sft").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "sft" / "adapter_config.json").touch()
    assert f"would start  from {Path('runs/demo/sft')}" in command("ppo", "--recipe", "demo", "--dry-run")[1]


@pytest.mark.parametrize(("stage", "key"), [("sft", "sft"), ("reward", "preferences"), ("ppo", "prompts")])
def test_a_dataset_replaces_the_recipes_own_and_its_held_out_part(command, tmp_path, stage, key):
    (tmp_path / "mine.csv").write_text("prompt,chosen,rejected,completion\na,b,c,d\n")
    out = command(stage, "--recipe", "demo", "--dataset", "mine.csv", "--dry-run")[1]
    assert f"  {key}: mine.csv\n" in out
    assert f"  {key}_test: null\n" in out


def test_help_is_quick(script, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, out, _ = script(tmp_path, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0
    assert all(name in out for name in ("demo", "sft", "reward", "ppo", "export", "recipes"))
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.0, "seconds of computing"


def test_version(command):
    code, out, _ = command("--version")
    assert code == 0
    assert re.fullmatch(r"lorarlhf \d+\.\d+\.\d+\n", out)

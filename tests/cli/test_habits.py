"""What people are used to of a command line: -h, completion, `python -m`, and faults told by a dry run too."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lorarlhf.files import write_file
from lorarlhf.manifest import written_whole
from lorarlhf.recipe.load import dump_recipe, load_recipe
from lorarlhf.recipe.shipped import list_recipes


@pytest.mark.parametrize("group", [(), ("recipes",), ("recipes", "copy"), ("ppo",)])
def test_the_short_help_is_the_long_one(command, group):
    short, long = command(*group, "-h"), command(*group, "--help")
    assert short == long
    assert short[0] == 0
    assert "--help" in short[1]


def test_python_m(tmp_path):
    call = [sys.executable, "-m", "lorarlhf", "--version"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lorarlhf ")


def completed(command, monkeypatch, line):
    monkeypatch.setenv("_LORARLHF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    return command()[1].split()


@pytest.mark.parametrize(
    "line", ["lorarlhf ppo --recipe qwen3", "lorarlhf recipes copy qwen3", "lorarlhf recipes show qwen3"]
)
def test_shells_complete_names_of_recipes(command, monkeypatch, line):
    names = [info.name for info in list_recipes() if info.name.startswith("qwen3")]
    assert completed(command, monkeypatch, line) == names


def test_shells_complete_commands_and_choices(command, monkeypatch):
    assert sorted(completed(command, monkeypatch, "lorarlhf re")) == ["recipes", "report", "reward"]
    assert completed(command, monkeypatch, "lorarlhf export --stage ") == ["sft", "reward", "ppo"]


def test_a_dry_run_of_a_resumption_names_its_checkpoint(command, tmp_path):
    call = ("ppo", "--recipe", "demo", "--dry-run", "--resume")
    code, _, err = command(*call)
    assert code == 2
    assert "no checkpoint to resume from" in err
    with written_whole(tmp_path / "runs" / "demo" / "ppo" / "checkpoint-3") as part:
        (part / "state.json").write_text(json.dumps({}))
    code, out, _ = command(*call)
    assert code == 0
    assert "would resume from runs/demo/ppo/checkpoint-3\n" in out
    assert "would start" not in out


def test_a_dry_run_of_a_resumption_refuses_other_settings_as_the_stage_does(command, tmp_path):
    folder = tmp_path / "runs" / "demo"
    theirs = ("--set", "ppo.reward_functions=[theirs:score]")
    recipe = load_recipe("demo", sets=theirs[1:])
    for place in (folder, folder / "ppo"):  # as from elsewhere: nothing notes that it may run code
        write_file(place / "recipe.yaml", dump_recipe(recipe))
    with written_whole(folder / "ppo" / "checkpoint-3") as part:
        (part / "state.json").write_text("{}")
    (tmp_path / "theirs.py").write_text("def score(prompts, responses):\n    return [0.0] * len(responses)\n")
    call = ("ppo", "--output-dir", "runs/demo", "--dry-run", "--resume", "--trust")
    code, _, err = command(*call, "--set", "ppo.kl_coef=0.7")
    assert code == 2
    assert "--resume: runs/demo/ppo was begun with other settings (ppo.kl_coef 0.1, not 0.7)" in err
    assert command(*call)[0] == 0
    assert "give --trust" in command(*call[:-1])[2]


@pytest.mark.parametrize("ending", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda patch, folder: (folder / "runs").write_text(""), "runs is a file, and a run is a folder"),
        (lambda patch, folder: patch.setattr(os, "access", lambda *_: False), "cannot be written; give another"),
        (
            lambda patch, folder: patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 2**20)),
            "5 MiB are free on its disk",
        ),
    ],
)
def test_where_nothing_can_be_written_is_told_first(command, monkeypatch, tmp_path, breaks, message, ending):
    breaks(monkeypatch, tmp_path)
    code, _, err = command("sft", "--recipe", "demo", *ending)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sft.report_to=[wandb]", "sft.report_to: wandb is not installed; `pip install wandb`, or take it out"),
        ("sft.report_to=[wanbd]", "sft.report_to[0]: expected 'tensorboard', 'trackio', 'wandb'"),
        ("sft.optim=adamw_troch", "sft.optim: transformers knows no adamw_troch; did you mean adamw_torch"),
    ],
)
def test_a_dry_run_tells_what_is_misspelt_or_missing(command, setting, message):
    code, _, err = command("sft", "--recipe", "demo", "--dry-run", "--set", setting)
    assert code == 2
    assert message in err

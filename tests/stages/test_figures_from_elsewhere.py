"""Summaries and evaluations of a run that came from elsewhere, or from another version: one line, and nothing made."""

import json
import sys

import pytest
from demo_runs import run_with, small_recipe

from lorarlhf.cli.main import main
from lorarlhf.errors import UserError
from lorarlhf.run import Run
from lorarlhf.stages.evaluate import reference_of
from lorarlhf.stages.pipeline import _result
from lorarlhf.stages.ppo import train_ppo


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_with(tmp_path_factory.mktemp("elsewhere"), ["sft", "reward", "ppo"])


@pytest.mark.parametrize("reference", ["../../another", "reward", "", 5, [], {}, None])
def test_a_policy_starts_from_no_other_folder(finished, reference):
    finished.write_summary("ppo", {"reference": reference})
    with pytest.raises(UserError, match=r"ppo/summary.json: reference is .*, and a policy starts from sft or base"):
        reference_of(finished, "ppo")


@pytest.mark.parametrize("reference", ["sft", "base"])
def test_where_a_policy_starts(finished, reference):
    finished.write_summary("ppo", {"reference": reference})
    assert reference_of(finished, "ppo") == reference


@pytest.mark.parametrize("key", ["steps", "iterations", "eval_rows"])
@pytest.mark.parametrize("value", ["3", None, [], 1.5, True])
def test_counts_are_whole_numbers(tmp_path, key, value):
    run = Run(tmp_path)
    run.write_summary("ppo", {key: value})
    with pytest.raises(UserError, match=rf"summary.json: {key} is .*, no whole number"):
        run.read_summary("ppo")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", {"stage": "ppo", "before": 5}),
        ("evaluation.json", {"objective": "nobody"}),
        ("summary.json", {"reward": 1.0, "reward_interval": ["a", "b"]}),
        ("tokenizer.json", []),
        ("tokenizer.json", {}),
    ],
)
def test_an_export_ends_before_a_model_is_loaded(finished, tmp_path, monkeypatch, capsys, file, content):
    path = finished.stage("ppo") / file
    before = path.read_text() if path.is_file() else None
    path.write_text(json.dumps(content))
    monkeypatch.setattr("lorarlhf.publishing.merge.read_adapter", None)  # what comes first of all that is loaded
    monkeypatch.setattr(
        sys,
        "argv",
        ["lorarlhf", "export", "--run", str(finished.path), "--to", str(tmp_path / "out"), "--adapter-only"],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    path.unlink()
    if before is not None:
        path.write_text(before)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path if file != "tokenizer.json" else path.parent) in line
    assert not (tmp_path / "out").exists()


HOSTILE = {"eval_accuracy": "x", "eval_accuracy_interval": [0, 1], "bag_of_words_accuracy": 0.5}


def test_ppo_ends_before_it_loads(finished, tmp_path):
    finished.write_summary("reward", HOSTILE)
    with pytest.raises(UserError, match=r"reward/summary.json: is not as this lorarlhf writes it"):
        train_ppo(small_recipe(tmp_path), finished)


def test_a_stage_that_was_done_already(finished, tmp_path):
    finished.write_summary("reward", {"objective": "bradley_terry", "eval_examples": 3, **HOSTILE})
    with pytest.raises(UserError, match=r"reward/summary.json: is not as this lorarlhf writes it"):
        _result("reward", small_recipe(tmp_path), finished, "ppo")

"""`lorarlhf score`: rows in, the same rows with their scores out."""

import sys

import pytest
from datasets import Dataset, DatasetDict
from demo_runs import DEMO, read_jsonl, save_random_adapter, small_recipe, write_jsonl

from lorarlhf.cli.main import main
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    recipe, run = small_recipe(folder), Run(folder / "run")
    run.write_recipe(recipe)
    save_random_adapter(recipe, run, "reward")
    return run


@pytest.fixture
def score(monkeypatch, capsys, run):
    def call(source, out, folder=run.path):
        monkeypatch.setattr(sys, "argv", ["lorarlhf", "score", str(source), "--run", str(folder), "--out", str(out)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def test_both_sides_of_pairs(score, run, tmp_path):
    pairs = read_jsonl(DEMO / "preferences.jsonl")[:5]
    out = tmp_path / "new" / "scored.jsonl"
    code, said, error = score(write_jsonl(tmp_path / "pairs.jsonl", pairs), out)
    assert code == 0, error
    assert f"5 rows in {out}" in said
    rows = read_jsonl(out)
    model = RewardModel.from_run(run)
    for side in ("chosen", "rejected"):
        assert [row[side] for row in rows] == [pair[side] for pair in pairs]
        expected = model.score([pair["prompt"] for pair in pairs], [pair[side][0]["content"] for pair in pairs])
        assert [row[f"{side}_score"] for row in rows] == pytest.approx(expected, abs=1e-5)


def test_the_split_that_a_source_names(score, tmp_path):
    """Read from another split, pairs were taken for demonstrations of their better sides."""
    pairs = Dataset.from_list(read_jsonl(DEMO / "preferences.jsonl")[:2])
    DatasetDict({"one": pairs, "other": pairs}).save_to_disk(tmp_path / "saved")
    code, _, error = score(f"{{source: {tmp_path / 'saved'}, split: other}}", tmp_path / "out.jsonl")
    assert code == 0, error
    assert all({"chosen_score", "rejected_score"} <= row.keys() for row in read_jsonl(tmp_path / "out.jsonl"))


def test_completions_become_ratings_to_train_on(score, tmp_path):
    rows = [{"prompt": "Hello?", "completion": text} for text in ("Good day.", "Go away.")]
    code, _, error = score(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl")
    assert code == 0, error
    scored = read_jsonl(tmp_path / "out.jsonl")
    assert [{key: row[key] for key in ("prompt", "completion")} for row in scored] == rows
    assert scored[0]["score"] != scored[1]["score"]


def test_nothing_is_overwritten_and_nothing_half_written(score, tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hello?", "completion": "Good day."}])
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    code, _, error = score(source, out)
    assert (code, error) == (2, f"Error: {out}: exists, and nothing is overwritten; give --out another name\n")
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "message"),
    [([{"colour": "red"}], "rows.jsonl:1: columns not recognised as"), ([], "no usable row, it is empty")],
)
def test_rows_of_another_kind(score, tmp_path, rows, message):
    code, _, error = score(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl")
    assert code == 2
    assert message in error
    assert not (tmp_path / "out.jsonl").exists()


def test_a_run_without_a_reward_model(score, tmp_path):
    recipe, other = small_recipe(tmp_path), Run(tmp_path / "other")
    other.write_recipe(recipe)
    source = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hello?", "completion": "Good day."}])
    code, _, error = score(source, tmp_path / "out.jsonl", other.path)
    assert code == 2
    assert "reward: no adapter there; run `lorarlhf reward" in error

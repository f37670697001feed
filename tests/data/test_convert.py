"""Canonical rows in new files, which read back as what they were made from."""

import gzip
import json

import datasets
import pytest
from turns import bot, user

from lorarlhf.data.convert import canonical, convert_pairs, split_pairs
from lorarlhf.data.examples import load_preferences
from lorarlhf.data.rows import Preference
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig, Source


def read(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


HELPSTEER = [
    {"prompt": f"Hi {i}", "response_1": "é", "response_2": "b", "preference_strength": strength}
    for i, strength in enumerate((-1, 0, 2))
]


def test_canonical_rows():
    asked, good, bad = [user("Hi")], [bot("Hello!")], [bot("What?")]
    pair = Preference(asked, good, bad, 2.0, annotators=("ann",))
    row = {"prompt": asked, "chosen": good, "rejected": bad}
    assert canonical(pair, "s") == row | {"margin": 2.0, "annotators": ["ann"], "source": "s"}
    assert canonical(Preference("Hi", " Hello!", " What?"), "s") == row | {"source": "s"}
    assert canonical(Preference(asked, good, bad, tie=True), "s") == row | {"tie": True, "source": "s"}


@pytest.mark.parametrize("name", ["new/out.jsonl", "out.jsonl.gz"])
def test_what_is_written_reads_back(write, tmp_path, name):
    source, path = write(HELPSTEER), tmp_path / name
    assert convert_pairs(source, DataConfig(), path) == (2, {"tie": 1})
    assert [(row["chosen"][0]["content"], row["margin"], row["source"]) for row in read(path)] == [
        ("é", 1.0, "rows.jsonl"),
        ("b", 2.0, "rows.jsonl"),
    ]
    before, after = (DataConfig(preferences=str(file), test_size=0.0) for file in (source, path))
    assert load_preferences(after, "train").rows == load_preferences(before, "train").rows


def test_ties_are_written_if_they_are_to_be_kept(write, tmp_path):
    config = DataConfig(ties="keep", test_size=0.0)
    assert convert_pairs(write(HELPSTEER), config, tmp_path / "out.jsonl") == (3, {})
    kept = load_preferences(config.model_copy(update={"preferences": str(tmp_path / "out.jsonl")}), "train")
    assert [pair.tie for pair in kept.rows] == [False, True, False]


def test_half_of_a_surrogate_pair_is_refused(write, tmp_path):
    source = write([r'{"prompt": "a\ud800", "chosen": "b", "rejected": "c"}'])
    with pytest.raises(UserError, match=r":1: half of a surrogate pair, which is no text; fix the row"):
        convert_pairs(source, DataConfig(), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_part_that_a_source_names_is_written_or_refused(tmp_path):
    parts = {name: datasets.Dataset.from_list(HELPSTEER[:1] * n) for name, n in (("train", 1), ("more", 2))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    more = Source(source=str(tmp_path / "saved"), split="more")
    assert convert_pairs(more, DataConfig(), tmp_path / "out.jsonl") == (2, {})
    with pytest.raises(UserError, match="max_examples and weight take a part of it, and all of it is written here"):
        convert_pairs(more.model_copy(update={"max_examples": 1}), DataConfig(), tmp_path / "one.jsonl")
    assert not (tmp_path / "one.jsonl").exists()


def test_split_puts_no_prompt_in_both_parts(write, tmp_path):
    # The same question as text with space around it, and twice with other answers: all of it on one side.
    rows = [
        {"prompt": text, "chosen": "b", "rejected": rejected}
        for i in range(300)
        for text, rejected in ((f"q {i}", "c"), (f" q {i} ", "d"), (f"q {i}", "e"))
    ]
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl.gz"
    counts = split_pairs(write(rows), DataConfig(test_size=0.3), train, test)
    assert counts == (len(read(train)), len(read(test)), {})
    asked = [{row["prompt"][0]["content"] for row in read(path)} for path in (train, test)]
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == {f"q {i}" for i in range(300)}
    assert 60 < len(asked[1]) < 120


@pytest.mark.parametrize("existing", ["train.jsonl", "test.jsonl"])
def test_nothing_is_overwritten_and_nothing_left_behind(write, tmp_path, existing):
    source, train, test = write(HELPSTEER), tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UserError, match=rf"{existing}: exists already and is not overwritten"):
        split_pairs(source, DataConfig(), train, test)
    assert (tmp_path / existing).read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["rows.jsonl", existing])


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        ([*HELPSTEER, "{torn"], "out.jsonl", r"rows\.jsonl:4: not valid JSON"),
        (HELPSTEER[1:2], "out.jsonl", "no usable row"),
        ([], "out.jsonl", "no usable row"),
        ([{"q": "a"}], "out.jsonl", "columns not recognised"),
        (HELPSTEER, "out.csv", r"out\.csv: must end in \.jsonl or \.jsonl\.gz"),
        (HELPSTEER, "rows.jsonl/out.jsonl", r"rows\.jsonl: exists already"),
        (HELPSTEER, "rows.jsonl", "exists already and is not overwritten"),
    ],
)
def test_a_failure_leaves_no_file(write, tmp_path, rows, name, message):
    source = write(rows)
    with pytest.raises(UserError, match=message):
        convert_pairs(source, DataConfig(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]

"""Columns with names of their own, and ties kept or dropped on the way from a source to rows."""

import json

import datasets
import pytest

from lorarlhf.data.examples import load_demonstrations, load_preferences, load_prompt_rows, stream_scored
from lorarlhf.data.formats import DEMONSTRATIONS, PREFERENCES, PROMPTS, UnknownColumns
from lorarlhf.data.reading import renamed
from lorarlhf.data.rows import NO_COLUMNS, Demonstration, Preference, PromptRow, Scored
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig

MAPPING = {"prompt": "query", "chosen": "good", "rejected": "bad"}
OWN = {"query": "a", "good": "b", "bad": "c", "subset": "x", "margin": 2}


@pytest.fixture
def write(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("row", "columns", "table", "expected"),
    [
        (OWN, {}, PREFERENCES, OWN),
        # `subset` goes, which would make it RewardBench's; canonical columns that nobody renamed stay.
        (OWN, MAPPING, PREFERENCES, {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}),
        (OWN, {"prompt": "query"}, PROMPTS, {"prompt": "a", "margin": 2}),
        # Other data of the same recipe is left alone, also if it shares a column that keeps its name.
        ({"prompt": "a", "completion": "b"}, MAPPING, DEMONSTRATIONS, {"prompt": "a", "completion": "b"}),
        ({"prompt": "a"}, MAPPING | {"prompt": "prompt"}, PROMPTS, {"prompt": "a"}),
        # What was `chosen` before is not taken for a second prompt or the like.
        ({"chosen": "b", "rejected": "c"}, {"chosen": "rejected", "rejected": "chosen"}, PREFERENCES,
         {"chosen": "c", "rejected": "b"}),
        ({"chosen": "a", "x": "b"}, {"prompt": "chosen", "chosen": "x"}, PREFERENCES, {"prompt": "a", "chosen": "b"}),
    ],
)  # fmt: skip
def test_renamed(row, columns, table, expected):
    assert renamed(row, columns, table) == expected


def test_a_mapping_that_fits_in_part_is_an_error():
    with pytest.raises(UnknownColumns) as raised:
        renamed({"query": "a", "good": "b", "worse": "c"}, MAPPING, PREFERENCES)
    assert str(raised.value) == "data.columns names bad, not found among the columns query, good, worse"


def test_mapped_columns_serve_every_stage(write):
    path = write([OWN])
    config = DataConfig(preferences=path, sft=path, prompts=path, columns=MAPPING, test_size=0.0)
    assert load_preferences(config, "train").rows == [Preference("a", "b", "c", 2.0)]
    assert load_demonstrations(config, "train").rows == [Demonstration("a", "b")]
    assert load_prompt_rows(config, "train", NO_COLUMNS).rows == [PromptRow("a")]
    scored = write([{"q": "a", "answer": "b", "stars": 3}], "scored.jsonl")
    mapping = {"prompt": "q", "completion": "answer", "score": "stars"}
    config = DataConfig(preferences=scored, columns=mapping, test_size=0.0)
    assert list(stream_scored(config, "train")) == [Scored("a", "b", 3.0)]


def test_a_wrong_mapping_is_named_with_file_and_columns(write):
    path = write([OWN])
    columns = MAPPING | {"rejected": "worst"}
    with pytest.raises(UserError, match=r"rows\.jsonl:1: data\.columns names worst, not found among .* query, good,"):
        load_preferences(DataConfig(preferences=path, columns=columns), "train")


def test_a_row_without_a_mapped_column_is_a_bad_row_once_the_format_is_known(write):
    path = write([OWN, {"query": "a", "good": "b"}])
    config = DataConfig(preferences=path, columns=MAPPING, on_bad_row="skip", test_size=0.0)
    loaded = load_preferences(config, "train")
    assert len(loaded.rows) == 1
    assert loaded.skipped == {"data.columns names bad, not found among the columns query, good": 1}


TIED = [
    {"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": strength} for strength in (-1, 0, 2)
]


def test_ties_are_dropped_and_counted_or_kept_to_train_on(write):
    config = DataConfig(preferences=write(TIED), preferences_test=write(TIED, "test.jsonl"))
    dropped = load_preferences(config, "train")
    assert ([pair.margin for pair in dropped.rows], dropped.skipped) == ([1.0, 2.0], {"tie": 1})
    keeping = config.model_copy(update={"ties": "keep"})
    kept = load_preferences(keeping, "train")
    assert ([pair.tie for pair in kept.rows], kept.skipped) == ([False, True, False], {})
    assert not any(pair.tie for pair in load_preferences(keeping, "test").rows)  # there is no right answer to test
    with pytest.raises(UserError, match=r"no usable row, all were skipped: tie \(1\)"):
        load_preferences(DataConfig(preferences=write(TIED[1:2])), "train")


def test_a_saved_folder_with_a_test_split_is_split_by_it(tmp_path):
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(5)]
    parts = {"train": datasets.Dataset.from_list(rows[:3]), "test": datasets.Dataset.from_list(rows[3:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    config = DataConfig(preferences=str(tmp_path / "saved"))
    assert [pair.prompt for pair in load_preferences(config, "train").rows] == ["0", "1", "2"]
    assert [pair.prompt for pair in load_preferences(config, "test").rows] == ["3", "4"]

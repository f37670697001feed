"""From a recipe's data section to rows: splits, fallbacks, bad rows, and the real files where they are there."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.data.examples import (
    load_demonstrations,
    load_preferences,
    load_prompt_rows,
    stream_preferences,
    stream_scored,
)
from lorarlhf.data.rows import NO_COLUMNS, ColumnsWanted, Preference, PromptRow, prompt_text, request_text
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig

PAIRS = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(400)]


def load_prompts(config, split):
    return load_prompt_rows(config, split, NO_COLUMNS)


def load_scored(config, split):
    return stream_scored(config, split).load()


def prompts(loaded):
    return [prompt_text(row.prompt) for row in loaded.rows]


def test_hash_split_is_disjoint_complete_and_does_not_move(write):
    doubled = [row for row in PAIRS for row in (row, row | {"rejected": "Never."})]
    config = DataConfig(preferences=write(doubled), test_size=0.2)
    train, test = prompts(load_preferences(config, "train")), prompts(load_preferences(config, "test"))
    assert not set(train) & set(test)
    assert Counter(train + test) == Counter(row["prompt"] for row in doubled)
    assert 0.14 < len(test) / len(doubled) < 0.26
    # The rest of the file, and its order, have no say in where a prompt goes; nor has a bigger share, but to add.
    other = DataConfig(preferences=write(PAIRS[:100][::-1], "other.jsonl"), test_size=0.2)
    assert set(prompts(load_preferences(other, "test"))) == set(test) & {row["prompt"] for row in PAIRS[:100]}
    assert set(test) < set(prompts(load_preferences(config.model_copy(update={"test_size": 0.4}), "test")))
    # Across versions too: a run that is resumed must not train on what it was tested on.
    assert sorted(set(test))[:3] == ["Question 101?", "Question 105?", "Question 109?"]


def test_prompts_fall_on_the_same_side_as_their_pairs(write):
    config = DataConfig(preferences=write(PAIRS), test_size=0.2)
    assert prompts(load_prompts(config, "test")) == prompts(load_preferences(config, "test"))


def test_a_test_source_leaves_all_of_the_rest_to_training(write):
    config = DataConfig(preferences=write(PAIRS), preferences_test=write(PAIRS[:3], "test.jsonl"))
    assert len(load_preferences(config, "train").rows) == 400
    assert load_preferences(config, "test").rows == load_preferences(config, "train").rows[:3]
    assert load_preferences(config, "test").source.endswith("test.jsonl")


@pytest.mark.parametrize(
    ("splits", "test_rows"), [({"train": PAIRS[:9], "test": PAIRS[9:11]}, 2), ({"train": PAIRS}, None)]
)
def test_hub_test_split_is_used_if_there_is_one(fake_hub, splits, test_rows):
    fake_hub(splits)
    config = DataConfig(preferences="owner/pairs")
    train, test = load_preferences(config, "train"), load_preferences(config, "test")
    if test_rows:
        assert prompts(train) + prompts(test) == [row["prompt"] for row in PAIRS[:11]]
        assert len(test.rows) == test_rows
    else:
        assert set(prompts(train)) | set(prompts(test)) == {row["prompt"] for row in PAIRS}
        assert not set(prompts(train)) & set(prompts(test))


def test_no_share_is_no_test_rows_and_a_share_that_catches_nothing_is_an_error(write):
    source = write(PAIRS[:2])
    assert load_preferences(DataConfig(preferences=source, test_size=0.0), "test").rows == []
    assert len(load_preferences(DataConfig(preferences=source, test_size=0.0), "train").rows) == 2
    with pytest.raises(
        UserError, match=r"none of 2 rows falls in the test part at data.test_size 0.001.*preferences_test"
    ):
        load_preferences(DataConfig(preferences=source, test_size=0.001), "test")
    with pytest.raises(UserError, match="none of 2 rows falls in the train part"):
        load_preferences(DataConfig(preferences=source, test_size=1.0), "train")


BAD: list[Any] = [
    PAIRS[0],
    '{"prompt": "cut',
    {"prompt": "a", "chosen": "b"},
    PAIRS[1],
    {"prompt": "a", "chosen": "b", "rejected": "b"},
    {"prompt": "c", "chosen": "d", "rejected": "d"},
]


@pytest.mark.parametrize(("line", "reason"), [(2, "not valid JSON"), (3, "rejected is missing"), (5, "are identical")])
def test_a_bad_row_is_an_error_with_file_and_line(write, line, reason):
    path = write([row if i + 1 == line else PAIRS[i] for i, row in enumerate(BAD)])
    with pytest.raises(UserError) as raised:
        load_preferences(DataConfig(preferences=path), "train")
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert reason in str(raised.value)
    assert str(raised.value).endswith("; fix the row or set data.on_bad_row: skip (--on-bad-row skip)")


def test_bad_rows_are_skipped_and_counted(write):
    loaded = load_preferences(DataConfig(preferences=write(BAD), on_bad_row="skip", test_size=0.0), "train")
    assert loaded.rows == [Preference(row["prompt"], row["chosen"], row["rejected"]) for row in PAIRS[:2]]
    assert loaded.skipped == {
        "not valid JSON (Invalid control character at)": 1,
        "rejected is missing": 1,
        "chosen and rejected are identical": 2,
    }


@pytest.mark.parametrize("first", [{"chosen": "x"}, {"prompt": "", "chosen": "", "rejected": ""}, "[]"])
def test_a_bad_first_row_does_not_decide_the_format(write, first):
    path = write([first, *PAIRS[:5]])
    assert len(load_preferences(DataConfig(preferences=path, on_bad_row="skip", test_size=0.0), "train").rows) == 5
    with pytest.raises(UserError, match=r"rows\.jsonl:1: "):
        load_preferences(DataConfig(preferences=path), "train")


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("count", [1, 1000])
def test_unknown_columns_are_an_error_whatever_happens_to_bad_rows(write, on_bad_row, count):
    rows = [{"question": "a", "answer": "b"}] * count + (PAIRS if count > 100 else [])  # too many to be bad rows
    config = DataConfig(preferences=write(rows), on_bad_row=on_bad_row)
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: columns not recognised as comparisons: found question, answer; say"
    ):
        load_preferences(config, "train")


def test_a_stream_reads_no_further_than_it_is_asked(write):
    stream = stream_preferences(DataConfig(preferences=write(BAD), test_size=0.0), "train")
    assert next(iter(stream)).prompt == PAIRS[0]["prompt"]
    with pytest.raises(UserError, match=r":2: "):
        list(stream)


def test_what_is_left_out_of_training_is_said_once(write, caplog):
    config = DataConfig(preferences=write(BAD + PAIRS[2:40]), on_bad_row="skip", test_size=0.2)
    for split in ("train", "test"):
        stream = stream_preferences(config, split)
        assert list(stream) == list(stream)
        assert stream.skipped["chosen and rejected are identical"] == 2
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 2, "twice read to train on"
    assert said[0].endswith(
        "rows.jsonl: left out: chosen and rejected are identical (2); not valid JSON "
        "(Invalid control character at) (1); rejected is missing (1)"
    )


def test_a_test_part_that_is_too_small_says_so(write, caplog):
    config = DataConfig(preferences=write(PAIRS), test_size=0.01)
    rows = load_preferences(config, "test").rows
    assert f"held out: {len(rows)} of 400 rows (data.test_size 0.01), too few to tell much; raise it" in caplog.text
    caplog.clear()
    for enough in ({"test_size": 0.2}, {"preferences_test": write(PAIRS[:3], "few.jsonl")}):
        load_preferences(config.model_copy(update=enough), "test")
    assert not caplog.text, "told of a file that was chosen"


def test_nothing_usable_is_an_error(write):
    with pytest.raises(UserError, match="no usable row, it is empty"):
        load_preferences(DataConfig(preferences=write([])), "train")
    with pytest.raises(UserError, match=r"all were skipped: chosen and rejected are identical \(2\)"):
        load_preferences(DataConfig(preferences=write(BAD[4:]), on_bad_row="skip"), "train")


@pytest.mark.parametrize(
    ("load", "key"),
    [
        (load_preferences, "preferences"),
        (load_scored, "preferences"),
        (load_demonstrations, "sft"),
        (load_prompts, "prompts"),
    ],
)
def test_no_source_names_the_key_and_the_option(load, key):
    with pytest.raises(UserError, match=rf"data\.{key} is not set.*--dataset"):
        load(DataConfig(), "train")


def test_prompts_have_a_source_of_their_own_and_no_repeats(write):
    rows = [{"prompt": "b"}, {"prompt": "a"}, {"prompt": "b"}]
    config = DataConfig(prompts=write(rows, "prompts.jsonl"), preferences=write(PAIRS), test_size=0.0)
    loaded = load_prompts(config, "train")
    assert (prompts(loaded), loaded.skipped) == (["b", "a"], {"repeated prompt": 1})
    turns = [{"role": "user", "content": "c"}]
    tested = DataConfig(preferences=write(PAIRS), prompts_test=write([{"prompt": turns}], "prompts_test.jsonl"))
    assert load_prompts(tested, "test").rows == [PromptRow(turns)]


SUMS = [
    {"prompt": "1+1", "answer": "2", "id": 1},
    {"prompt": "1+1", "answer": "2", "id": 2},
    {"prompt": "1+1", "answer": "two", "id": 3},
    {"prompt": "2+2", "answer": "4", "id": 4},
]


@pytest.mark.parametrize(
    ("wanted", "columns"),
    [
        (ColumnsWanted(), [{}, {}]),
        (ColumnsWanted(needed=frozenset({"answer"})), [{"answer": "2"}, {"answer": "two"}, {"answer": "4"}]),
        (ColumnsWanted(welcome=frozenset({"id", "hint"})), [{"id": i} for i in (1, 2, 3, 4)]),
        (ColumnsWanted(all=True), SUMS),
    ],
)
def test_prompts_have_the_columns_that_are_wanted(write, wanted, columns):
    loaded = load_prompt_rows(DataConfig(prompts=write(SUMS), test_size=0.0), "train", wanted)
    assert [row.columns for row in loaded.rows] == columns
    assert {row.prompt for row in loaded.rows} == {"1+1", "2+2"}
    assert loaded.skipped.get("repeated prompt", 0) == 4 - len(columns)


def test_columns_have_the_names_of_the_data(write):
    rows = [{"question": "1+1", "gold": [1, 1], "chosen": 3}]
    config = DataConfig(prompts=write(rows), columns={"prompt": "question"}, test_size=0.0)
    [row] = load_prompt_rows(config, "train", ColumnsWanted(frozenset({"gold"}))).rows
    assert row == PromptRow("1+1", {"gold": [1, 1]})


def test_a_column_that_is_not_there(write):
    wanted = ColumnsWanted(frozenset({"answer", "hint"}))
    rows = [{"prompt": "a", "answer": "b", "hint": "c"}, {"prompt": "d", "id": 1}]
    path = write(rows)
    with pytest.raises(UserError) as error:
        load_prompt_rows(DataConfig(prompts=path, test_size=0.0), "train", wanted)
    reason = "no column answer, hint, which ppo.reward_functions ask for; there are prompt, id"
    assert str(error.value) == f"{path}:2: {reason}; fix the row or set data.on_bad_row: skip (--on-bad-row skip)"
    loaded = load_prompt_rows(DataConfig(prompts=path, test_size=0.0, on_bad_row="skip"), "train", wanted)
    assert (len(loaded.rows), loaded.skipped) == (1, {reason: 1})


def test_scored_and_demonstrations(write):
    scored = write([{"prompt": "a", "response": "b", "score": 2}], "scored.jsonl")
    config = DataConfig(preferences=scored, sft=write(PAIRS), test_size=0.0)
    assert [row.score for row in load_scored(config, "train").rows] == [2.0]
    assert [row.completion for row in load_demonstrations(config, "train").rows[:2]] == ["Yes 0.", "Yes 1."]


def test_request_text_is_what_the_user_asked_last():
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d")]
    assert request_text([{"role": role, "content": content} for role, content in turns]) == "c\nd"
    assert request_text("plain") == "plain"


REAL = Path(__file__).parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files in ../shared/data")


@real
@pytest.mark.parametrize(
    ("split", "first", "skipped"),
    [
        (
            "train",
            "1952: rejected has an empty turn",
            {"chosen and rejected are identical": 1, "rejected has an empty turn": 2},
        ),
        (
            "test",
            "222: chosen and rejected are identical",
            {"chosen and rejected are identical": 2, "rejected has an empty turn": 1},
        ),
    ],
)
def test_hh_rlhf_helpful(split, first, skipped):
    folder = REAL / "hh_rlhf_helpful"
    config = DataConfig(
        preferences=f"{folder}/train.jsonl.gz", preferences_test=f"{folder}/test.jsonl.gz", on_bad_row="skip"
    )
    loaded = load_preferences(config, split)
    assert len(loaded.rows) == 3997
    assert loaded.skipped == skipped
    turns: Any
    for turns in (row.prompt for row in loaded.rows):  # the sample is of single-turn comparisons
        assert [message["role"] for message in turns] == ["user"]
    for turns in (side for row in loaded.rows for side in (row.chosen, row.rejected)):
        assert turns[-1]["role"] == "assistant"
    with pytest.raises(UserError, match=rf"{split}\.jsonl\.gz:{first}"):
        load_preferences(config.model_copy(update={"on_bad_row": "error"}), split)


@real
def test_polite_vs_rude():
    path = str(REAL / "polite_vs_rude" / "instruction-data-with-preference.json")
    config = DataConfig(preferences=path, sft=path, on_bad_row="skip")
    train, test = load_preferences(config, "train"), load_preferences(config, "test")
    assert train.skipped == test.skipped == {"chosen and rejected are identical": 6}
    assert len(train.rows) + len(test.rows) == 1094
    assert not set(prompts(train)) & set(prompts(test))
    assert [row.completion for row in load_demonstrations(config, "test").rows] == [row.chosen for row in test.rows]
    with pytest.raises(
        UserError, match=r"instruction-data-with-preference\.json: row 123: chosen and rejected are identical"
    ):
        load_preferences(config.model_copy(update={"on_bad_row": "error"}), "train")

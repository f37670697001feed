"""A random part of many rows: which it is, what it costs, and that every stage and every look at it has the same."""

import json
import re

import pytest
from byte_level import make_tokenizer

from lorarlhf.data.held_out import held_out_preferences
from lorarlhf.data.rows import Demonstration, Preference, PromptRow, Scored, in_turns
from lorarlhf.data.subset import first_by_rank, rank
from lorarlhf.data.tokenize import tokenize_preferences
from lorarlhf.data.tokenized import (
    preference_examples,
    prompt_examples,
    scored_examples,
    sft_examples,
)
from lorarlhf.data.tokenizer import prepare_tokenizer
from lorarlhf.recipe.sections import DataConfig

ROWS = [Preference(f"Question {i}?", f"Yes {i}.", "No.") for i in range(2000)]


def chosen_by(limit, rows=ROWS, fits=lambda row: True):
    """A slow second: all of them sorted."""
    return sorted((row for row in rows if fits(row)), key=rank)[:limit]


@pytest.mark.parametrize("limit", [1, 7, 2000, 5000])
def test_it_is_the_lowest_ranks_in_their_order(limit):
    assert list(first_by_rank(ROWS, limit, rank, lambda row: row)) == chosen_by(limit)


def test_what_is_of_no_use_takes_no_place():
    def even(row):
        return row if int(row.prompt[9:-1]) % 2 == 0 else None

    assert list(first_by_rank(ROWS, 50, rank, even)) == chosen_by(50, fits=even)
    assert list(first_by_rank(ROWS, None, rank, even)) == ROWS[::2]


def test_few_more_rows_are_looked_at_than_are_taken():
    looked_at = []
    list(first_by_rank(ROWS, 20, rank, lambda row: looked_at.append(row) or row))
    assert len(looked_at) < 20 * (1 + 7)  # ln(2000 / 20) is 4.6


def test_of_equal_rows_the_first_are_taken():
    assert list(first_by_rank("abcdef", 3, lambda letter: 0, lambda letter: letter)) == ["a", "b", "c"]


def test_the_order_of_a_file_has_no_say_and_its_beginning_no_more_of_them():
    taken = list(first_by_rank(ROWS[::-1], 400, rank, lambda row: row))
    assert taken == chosen_by(400)
    by_quarter = [sum(row in taken for row in ROWS[start : start + 500]) for start in range(0, 2000, 500)]
    assert all(70 <= count <= 130 for count in by_quarter), by_quarter
    # Across versions too: a run that is resumed goes on with the rows that it began with.
    assert [row.prompt for row in taken[:3]] == ["Question 1644?", "Question 1040?", "Question 1897?"]


def test_all_that_a_row_says_has_a_say():
    asked = [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]
    rows = [
        *(Preference("a", "b", "c"), Preference("a", "c", "b"), Preference(asked, "b", "c"), Preference("a", "bc", "")),
        *(Demonstration("a", "b"), Demonstration("a", "c"), PromptRow("a"), PromptRow("b")),
    ]
    assert len({rank(row) for row in rows}) == len(rows)
    assert rank(Demonstration("a", "b")) == rank(Scored("a", "b", 1.0))
    assert all(rank(row) == rank(in_turns(row)) for row in rows)


@pytest.fixture
def tokenizer():
    made = make_tokenizer()
    prepare_tokenizer(made, 400, DataConfig())
    return made


@pytest.fixture
def source(tmp_path):
    """80 rows that serve as data of every kind; every fourth is too long, and each has a group."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"Why {i}? " * (20 if i % 4 == 0 else 1),
                    "chosen": f"So {i}.",
                    "rejected": "No.",
                    "completion": f"So {i}.",
                    "score": i,
                    "subset": "odd" if i % 2 else "even",
                }
            )
            + "\n"
            for i in range(80)
        )
    )
    return str(path)


def config_of(source, **more):
    keys = {f"{key}{test}": source for key in ("sft", "preferences", "prompts") for test in ("", "_test")}
    return DataConfig(**keys, max_length=60, max_prompt_length=50, on_bad_row="skip", **more)


EXAMPLES = {"sft": sft_examples, "pairs": preference_examples, "ratings": scored_examples, "prompts": prompt_examples}


def identities(examples):
    if isinstance(examples, list):
        return [tuple(example.ids) for example in examples]
    columns = [name for name in ("chosen_ids", "input_ids") if name in examples.dataset.column_names]
    return [tuple(ids) for ids in examples.dataset[columns[0]]]


@pytest.mark.parametrize("examples", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize(("split", "key"), [("train", "max_examples"), ("test", "eval_examples")])
def test_every_stage_takes_as_many_as_are_wanted(source, tokenizer, caplog, examples, split, key):
    everything = identities(examples(config_of(source), tokenizer, split))
    assert len(everything) == 60
    caplog.clear()
    taken = identities(examples(config_of(source, **{key: 25}), tokenizer, split))
    assert len(taken) == 25, "rows that are too long take no place"
    assert set(taken) < set(everything)
    [said] = [record.message for record in caplog.records if "taken" in record.message]
    assert said.startswith(f"{source}: taken: 25 of 80 rows to {split} on, at random (data.{key})")
    assert identities(examples(config_of(source, **{key: 7}), tokenizer, split)) == taken[:7]
    other = {"max_examples": "eval_examples", "eval_examples": "max_examples"}[key]
    assert identities(examples(config_of(source, **{other: 3}), tokenizer, split)) == everything


def test_no_more_than_there_are(source, tokenizer, caplog):
    taken = preference_examples(config_of(source, eval_examples=60), tokenizer, "test")
    assert (len(taken.dataset), taken.rows, taken.dropped) == (60, 80, 20)
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "left out: 20 of 80 rows to test on, over data.max_length 60 tokens"
    ]


def test_groups_go_with_their_rows(source, tokenizer):
    held_out = held_out_preferences(config_of(source, eval_examples=20), tokenizer)
    tokenized, groups = held_out.examples, held_out.groups
    plain = preference_examples(config_of(source, eval_examples=20), tokenizer, "test")
    assert list(tokenized.dataset["chosen_ids"]) == list(plain.dataset["chosen_ids"])
    numbers = [int(re.findall(r"\d+", tokenizer.decode(ids))[0]) for ids in tokenized.dataset["chosen_ids"]]
    assert groups["subset"] == ["odd" if number % 2 else "even" for number in numbers]
    assert len(set(groups["subset"])) == 2


def test_a_part_has_the_columns_of_the_whole(tokenizer):
    rows = [Preference("a", "b", str(i), margin=float(i), tie=i % 3 == 0) for i in range(30)]
    part, whole = (tokenize_preferences(rows, tokenizer, 60, limit).dataset for limit in (10, None))
    assert part.features == whole.features
    assert {tuple(map(str, row.values())) for row in part} < {tuple(map(str, row.values())) for row in whole}

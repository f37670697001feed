"""Token ids as PPO makes them, on tokenizers made here."""

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from byte_level import ANSWER, CHAT, make_tokenizer

from lorarlhf.data.rows import Demonstration, Preference, PromptRow, Scored
from lorarlhf.data.tokenize import (
    encode_completion,
    encode_prompt,
    tokenize_demonstrations,
    tokenize_preferences,
    tokenize_prompts,
    tokenize_scored,
)
from lorarlhf.data.tokenizer import prepare_tokenizer
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig


@pytest.fixture
def tokenizer():
    made = make_tokenizer(pad_token="<eos>")
    prepare_tokenizer(made, len(made) + 8, DataConfig())
    return made


def test_prompt_never_ends_with_eos():
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=True, appends_eos=True)
    assert tokenizer("The sky")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encode_prompt(tokenizer, "The sky")) == "<bos>The sky"


def test_response_is_its_own_text_and_eos(tokenizer):
    prompt, response = encode_completion(tokenizer, "The sky is", " blue today.", tokenizer.eos_token_id)
    assert tokenizer.decode(prompt + response) == "The sky is blue today.<eos>"
    assert response == [*tokenizer(" blue today.")["input_ids"], tokenizer.eos_token_id]

    prompt, response = encode_completion(tokenizer, CHAT, ANSWER, tokenizer.eos_token_id)
    assert tokenizer.decode(prompt + response) == "User:\nWhat is the sky?\n\nAssistant:\nThe sky is blue.<eos>"
    assert prompt == encode_prompt(tokenizer, CHAT)
    assert tokenizer.decode(response) == "The sky is blue.<eos>"


def test_rows_end_as_turns_of_the_template_do():
    template = (
        "{% for m in messages %}<turn>{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>{% endif %}"
    )
    tokenizer = make_tokenizer(("<eos>", "<turn>", "<end>"), chat_template=template)
    prepare_tokenizer(tokenizer, 400, DataConfig())
    pairs = tokenize_preferences([Preference(CHAT, ANSWER, ANSWER)], tokenizer, 100).dataset
    shown = tokenize_demonstrations([Demonstration(CHAT, ANSWER)], tokenizer, 100).dataset
    rated = tokenize_scored([Scored(CHAT, ANSWER, 1.0)], tokenizer, 100).dataset
    rows = [pairs["chosen_ids"][0], pairs["rejected_ids"][0], shown["input_ids"][0], rated["input_ids"][0]]
    assert {tokenizer.decode(row) for row in rows} == {"<turn>What is the sky?<end>\n<turn>The sky is blue.<end>"}


def test_bos_is_not_put_in_front_of_a_response():
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=True)
    _, response = encode_completion(tokenizer, "The sky", " is", tokenizer.eos_token_id)
    assert tokenizer.decode(response) == " is<eos>"


def test_messages_before_the_last_join_the_prompt(tokenizer):
    more = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It is late."}]
    prompt, response = encode_completion(tokenizer, CHAT, ANSWER + more, tokenizer.eos_token_id)
    assert prompt == encode_prompt(tokenizer, CHAT + ANSWER + more[:1])
    assert tokenizer.decode(response) == "It is late.<eos>"


def test_a_template_that_refuses_is_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        UserError, match=r"refuses a conversation of user \(roles must alternate\).*data\.chat_template"
    ):
        encode_prompt(tokenizer, CHAT)


@pytest.mark.parametrize(
    ("margins", "columns"), [([1.0, 2.5], {"margin"}), ([1.0, None], set()), ([None, None], set())]
)
def test_tokenize_preferences(tokenizer, margins, columns):
    rows = [Preference("The sky is", " blue.", " late.", margin) for margin in margins]
    dataset = tokenize_preferences(rows, tokenizer, 100).dataset
    assert set(dataset.column_names) == {"chosen_ids", "rejected_ids"} | columns
    assert dataset.features["chosen_ids"].feature.dtype == "int32"
    assert not any(Path(file["filename"]).exists() for file in dataset.cache_files), "nothing is left behind"
    assert [tokenizer.decode(dataset[0][side]) for side in ("chosen_ids", "rejected_ids")] == [
        "The sky is blue.<eos>",
        "The sky is late.<eos>",
    ]
    if columns:
        assert list(dataset["margin"]) == margins


def test_memory_does_not_grow_with_the_rows(tokenizer, monkeypatch):
    monkeypatch.setattr("lorarlhf.data.tokenize.encode_completion", lambda *args: ([1000] * 100, [2000] * 100))
    peaks, mapped = [], []
    for count in (2000, 20_000):
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        mapped.append(tokenize_preferences((Preference("a", "b", "c") for _ in range(count)), tokenizer, 500).dataset)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() - before < count * 100, "the ids, 1600 bytes a row, are not in memory"
    assert [len(dataset) for dataset in mapped] == [2000, 20_000]
    assert peaks[1] < 1.2 * peaks[0]


def test_rows_over_the_limit_are_dropped_whole(tokenizer):
    prompt, response = encode_completion(tokenizer, "The sky is", " blue.", tokenizer.eos_token_id)
    limit = len(prompt + response)
    rows = [Preference("The sky is", " blue.", ".")] * 2500 + [
        Preference("The sky is", ".", " blue. It"),
        Preference("The sky is", " blue. It", "."),
    ]
    tokenized = tokenize_preferences(rows, tokenizer, limit)
    assert (len(tokenized.dataset), tokenized.dropped) == (2500, 2)
    with pytest.raises(UserError, match=rf"longer than data\.max_length 2 tokens; the shortest has {limit}"):
        tokenize_preferences(rows, tokenizer, 2)


def test_tokenize_demonstrations_marks_the_response(tokenizer):
    demonstrations = [Demonstration(CHAT, ANSWER), Demonstration("The", " sky")]
    dataset = tokenize_demonstrations(demonstrations, tokenizer, 100).dataset
    for row, shown in zip(dataset, demonstrations, strict=True):
        prompt_ids, response_ids = encode_completion(tokenizer, shown.prompt, shown.completion, tokenizer.eos_token_id)
        assert row == {
            "input_ids": prompt_ids + response_ids,
            "labels": [-100] * len(prompt_ids) + response_ids,
        }


def test_tokenize_scored(tokenizer):
    tokenized = tokenize_scored([Scored("The sky", " is", 0.5), Scored("The", " sky" * 50, 1.0)], tokenizer, 20)
    prompt, response = encode_completion(tokenizer, "The sky", " is", tokenizer.eos_token_id)
    assert list(tokenized.dataset) == [{"input_ids": prompt + response, "score": 0.5}]
    assert tokenized.dropped == 1


def test_tokenize_prompts(tokenizer):
    rows = [PromptRow("The sky"), PromptRow("The sky " * 50), PromptRow(CHAT, {"answer": 4})]
    examples, dropped = tokenize_prompts(rows, tokenizer, 60)
    assert [example.columns for example in examples] == [{}, {"answer": 4}]
    assert [example.prompt for example in examples] == ["The sky", CHAT]
    assert [example.ids for example in examples] == [encode_prompt(tokenizer, p) for p in ("The sky", CHAT)]
    assert dropped == 1
    with pytest.raises(UserError, match=r"longer than data\.max_prompt_length 1 tokens; the shortest has \d"):
        tokenize_prompts([PromptRow("The sky is")], tokenizer, 1)


def test_nothing_in_nothing_out(tokenizer):
    assert len(tokenize_preferences([], tokenizer, 10).dataset) == 0
    assert tokenize_prompts([], tokenizer, 10) == ([], 0)


def test_ties_get_a_column_of_their_own_where_there_are_any(tokenizer):
    won, tied = Preference("a", "b", "c", 2.0), Preference("a", "b", "d", tie=True)
    dataset = tokenize_preferences([won, tied], tokenizer, 64).dataset
    assert dataset["tie"] == [False, True]
    assert dataset["margin"] == [2.0, 0.0]
    assert tokenize_preferences([won], tokenizer, 64).dataset.column_names == ["chosen_ids", "rejected_ids", "margin"]
    dataset = tokenize_preferences([tied, Preference("a", "b", "c")], tokenizer, 64).dataset
    assert dataset.column_names == ["chosen_ids", "rejected_ids", "tie"]

"""Token ids as PPO makes them, and the pad token that any tokenizer gets, on tokenizers made here."""

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lorarlhf.data.rows import Demonstration, Preference, Scored
from lorarlhf.data.tokenize import (
    PAD,
    encode_completion,
    encode_prompt,
    prepare_tokenizer,
    tokenize_demonstrations,
    tokenize_preferences,
    tokenize_prompts,
    tokenize_scored,
)
from lorarlhf.errors import UserError

TEXT = [
    "User:\nWhat is the sky?\n\nAssistant:\nThe sky is blue today.",
    "Hello there, why is the sky so blue? It is late.",
]
CHAT = [{"role": "user", "content": "What is the sky?"}]
ANSWER = [{"role": "assistant", "content": "The sky is blue."}]


def make_tokenizer(special=("<eos>",), bos=False, appends_eos=False, **named):
    """Byte-level BPE of about 300 entries, special tokens last as in Llama 3; `<eos>` is eos unless told otherwise."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    if bos or appends_eos:
        single = ("<bos> " if bos else "") + "$A" + (" <eos>" if appends_eos else "")
        tokens = [(token, bpe.token_to_id(token)) for token in special]
        bpe.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    names = {"eos_token": "<eos>"} | ({"bos_token": "<bos>"} if bos else {}) | named
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


@pytest.fixture
def tokenizer():
    made = make_tokenizer(pad_token="<eos>")
    prepare_tokenizer(made, len(made) + 8, None)
    return made


@pytest.mark.parametrize(
    ("special", "named", "spare_rows", "expected"),
    [
        (("<eos>", "<pad>"), {"pad_token": "<pad>"}, 0, "<pad>"),
        (("<eos>", "<|vision_pad|>"), {"pad_token": "<eos>"}, 8, "<|vision_pad|>"),
        (("<eos>", "<|finetune_right_pad_id|>", "<unk>"), {"unk_token": "<unk>"}, 8, "<|finetune_right_pad_id|>"),
        (("<eos>", "<|reserved_0|>", "<unk>"), {"unk_token": "<unk>"}, 8, "<unk>"),
        (("<eos>", "<|reserved_0|>", "<|reserved_1|>"), {"unk_token": "<eos>"}, 8, "<|reserved_0|>"),
        (("<eos>", "<unused7>"), {"pad_token": "<eos>", "bos_token": "<eos>"}, 0, "<unused7>"),
        (("<eos>", "<|pad_bos|>"), {"bos_token": "<|pad_bos|>"}, 8, PAD),
        (("<eos>",), {"pad_token": "<eos>", "bos_token": "<eos>", "unk_token": "<eos>"}, 1, PAD),
        (("<eos>", "<|im_start|>"), {}, 8, PAD),
    ],
)
def test_pad_token(special, named, spare_rows, expected):
    tokenizer = make_tokenizer(special, **named)
    rows = len(tokenizer) + spare_rows
    prepare_tokenizer(tokenizer, rows, None)
    assert tokenizer.pad_token == expected
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id < rows
    assert tokenizer.eos_token == "<eos>"


def test_pad_token_with_nothing_to_spare_leaves_text_as_it_is():
    plain = make_tokenizer()
    tokenizer = make_tokenizer(pad_token="<eos>")
    notes = prepare_tokenizer(tokenizer, len(tokenizer), None)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id < len(tokenizer) == len(plain)
    assert any("no token to spare for padding" in note for note in notes)
    assert tokenizer.convert_tokens_to_string([tokenizer.pad_token]) != tokenizer.pad_token
    for text in (*TEXT, "a zebra, naïve"):
        assert tokenizer(text)["input_ids"] == plain(text)["input_ids"]


def test_a_pad_token_beyond_the_embedding_is_replaced():
    tokenizer = make_tokenizer(("<eos>", "<unused0>", "<pad>"), pad_token="<pad>")
    prepare_tokenizer(tokenizer, len(tokenizer) - 1, None)
    assert tokenizer.pad_token == "<unused0>"


def test_no_eos_is_an_error():
    with pytest.raises(UserError, match="has no eos token"):
        prepare_tokenizer(make_tokenizer(eos_token=None), 400, None)


def test_chat_template_given_own_or_plain(tmp_path):
    own = make_tokenizer(chat_template="own")
    assert not any("template" in note for note in prepare_tokenizer(own, 400, None))
    assert own.chat_template == "own"
    (tmp_path / "given.jinja").write_text("given")
    prepare_tokenizer(own, 400, str(tmp_path / "given.jinja"))
    assert own.chat_template == "given"
    with pytest.raises(UserError, match=r"data\.chat_template .*nowhere\.jinja: cannot be read"):
        prepare_tokenizer(own, 400, str(tmp_path / "nowhere.jinja"))
    bare = make_tokenizer()
    assert any("no chat template" in note for note in prepare_tokenizer(bare, 400, None))
    turns = [{"role": "system", "content": "Be kind."}, *CHAT, *ANSWER, {"role": "user", "content": "Why?"}]
    assert bare.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "System:\nBe kind.\n\nUser:\nWhat is the sky?\n\n"
        "Assistant:\nThe sky is blue.<eos>\n\nUser:\nWhy?\n\nAssistant:\n"
    )


def test_plain_template_begins_with_bos_as_plain_text_does():
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=True)
    prepare_tokenizer(tokenizer, 400, None)
    for prompt in ("The sky is", CHAT):
        ids = encode_prompt(tokenizer, prompt)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_prompt_never_ends_with_eos():
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=True, appends_eos=True)
    assert tokenizer("The sky")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encode_prompt(tokenizer, "The sky")) == "<bos>The sky"


def test_response_is_its_own_text_and_eos(tokenizer):
    prompt, response = encode_completion(tokenizer, "The sky is", " blue today.")
    assert tokenizer.decode(prompt + response) == "The sky is blue today.<eos>"
    assert response == [*tokenizer(" blue today.")["input_ids"], tokenizer.eos_token_id]

    prompt, response = encode_completion(tokenizer, CHAT, ANSWER)
    assert tokenizer.decode(prompt + response) == "User:\nWhat is the sky?\n\nAssistant:\nThe sky is blue.<eos>"
    assert prompt == encode_prompt(tokenizer, CHAT)
    assert tokenizer.decode(response) == "The sky is blue.<eos>"


def test_bos_is_not_put_in_front_of_a_response():
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=True)
    _, response = encode_completion(tokenizer, "The sky", " is")
    assert tokenizer.decode(response) == " is<eos>"


def test_messages_before_the_last_join_the_prompt(tokenizer):
    more = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It is late."}]
    prompt, response = encode_completion(tokenizer, CHAT, ANSWER + more)
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
    prompt, response = encode_completion(tokenizer, "The sky is", " blue.")
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
        prompt_ids, response_ids = encode_completion(tokenizer, shown.prompt, shown.completion)
        assert row == {
            "input_ids": prompt_ids + response_ids,
            "labels": [-100] * len(prompt_ids) + response_ids,
        }


def test_tokenize_scored(tokenizer):
    tokenized = tokenize_scored([Scored("The sky", " is", 0.5), Scored("The", " sky" * 50, 1.0)], tokenizer, 20)
    prompt, response = encode_completion(tokenizer, "The sky", " is")
    assert list(tokenized.dataset) == [{"input_ids": prompt + response, "score": 0.5}]
    assert tokenized.dropped == 1


def test_tokenize_prompts(tokenizer):
    examples, dropped = tokenize_prompts(["The sky", "The sky " * 50, CHAT], tokenizer, 60)
    assert [example.prompt for example in examples] == ["The sky", CHAT]
    assert [example.ids for example in examples] == [encode_prompt(tokenizer, p) for p in ("The sky", CHAT)]
    assert dropped == 1
    with pytest.raises(UserError, match=r"longer than data\.max_prompt_length 1 tokens; the shortest has \d"):
        tokenize_prompts(["The sky is"], tokenizer, 1)


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

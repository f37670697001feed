"""Plain text for a chat model becomes turns of a conversation, for a base model it stays text."""

import json

import pytest
from byte_level import make_tokenizer
from turns import bot, user

from lorarlhf.data.tokenize import encode_prompt
from lorarlhf.data.tokenized import preference_examples, prompt_examples, sft_examples
from lorarlhf.data.tokenizer import prepare_tokenizer
from lorarlhf.recipe.sections import DataConfig

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"
ROW = {"prompt": "Why is the sky blue? ", "chosen": " It is late.", "rejected": " No."}
WRAPPED = {"prompt": [user("Why is the sky blue?")], "chosen": [bot("It is late.")], "rejected": [bot("No.")]}
APPLIED = "plain text is put into the chat template"
NOT_APPLIED = "plain text goes to a chat model as it is"


@pytest.fixture
def chat():
    return make_tokenizer(("<eos>", "<end>"), chat_template=TEMPLATE)


@pytest.fixture
def base():
    return make_tokenizer()


@pytest.fixture
def read(tmp_path):
    """`read(tokenizer, row, **DataConfig)`: what each stage reads of a file with the row twice, as text."""

    def read(tokenizer, row, **options):
        rows = [row, {**row, "prompt": row["prompt"] * 2}]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(sft=str(path), preferences=str(path), test_size=0.0, **options)
        prepare_tokenizer(tokenizer, 400, config)
        pairs = preference_examples(config, tokenizer, "train").dataset
        shown = sft_examples(config, tokenizer, "train").dataset
        (prompt, _) = prompt_examples(config, tokenizer, "train")
        ids = [*(pairs[f"{side}_ids"][0] for side in ("chosen", "rejected")), shown["input_ids"][0], prompt.ids]
        assert prompt.ids == encode_prompt(tokenizer, prompt.prompt), "written as it was read"
        return tokenizer.batch_decode(ids), prompt.prompt

    return read


AS_TURNS = [
    "<user>Why is the sky blue?<end><assistant>It is late.<end>",
    "<user>Why is the sky blue?<end><assistant>No.<end>",
    "<user>Why is the sky blue?<end><assistant>It is late.<end>",
    "<user>Why is the sky blue?<end><assistant>",
]


@pytest.mark.parametrize("row", [ROW, WRAPPED], ids=["text", "messages"])
@pytest.mark.parametrize("option", ["auto", "always"])
def test_a_chat_model_reads_text_as_turns(read, chat, row, option):
    assert read(chat, row, wrap_text=option) == (AS_TURNS, WRAPPED["prompt"])


@pytest.mark.parametrize("option", ["auto", "never"])
def test_a_base_model_reads_text_as_it_is(read, base, option, caplog):
    texts, prompt = read(base, ROW, wrap_text=option)
    assert texts == [
        "Why is the sky blue?  It is late.<eos>",
        "Why is the sky blue?  No.<eos>",
        "Why is the sky blue?  It is late.<eos>",
        "Why is the sky blue? ",
    ]
    assert prompt == ROW["prompt"]
    assert "plain text" not in caplog.text


def test_a_base_model_may_be_given_turns(read, base):
    texts, prompt = read(base, ROW, wrap_text="always")
    assert texts[0] == "User:\nWhy is the sky blue?\n\nAssistant:\nIt is late.<eos>"
    assert prompt == WRAPPED["prompt"]


def test_a_template_that_the_recipe_names_makes_a_chat_model(read, base, tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    texts, _ = read(base, ROW, chat_template=str(tmp_path / "chat.jinja"))
    assert texts[-1] == "<user>Why is the sky blue?<end><assistant>"


def test_a_tokenizer_that_an_earlier_run_has_left_is_still_one_of_a_base_model(read, base):
    read(base, ROW, chat_template_kwargs={"anything": 1})
    texts, _ = read(base, ROW)
    assert texts[-1] == ROW["prompt"]


@pytest.mark.parametrize(("option", "said"), [("auto", APPLIED), ("never", NOT_APPLIED)])
def test_it_is_said_once_a_source(read, chat, option, said, caplog):
    texts, _ = read(chat, ROW, wrap_text=option)
    assert texts[0].startswith("<user>" if option == "auto" else "Why is")
    assert texts[0].endswith("late.<end>")
    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [message.split(": ", 1)[1].startswith(said) for message in messages] == [True], "not by each of three stages"
    caplog.clear()
    config = DataConfig(prompts_test=messages[0].split(": ")[0], wrap_text=option)
    assert prompt_examples(config, chat, "test")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_nothing_is_said_of_conversations(read, chat, caplog):
    read(chat, WRAPPED, wrap_text="never")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

"""The eos and pad tokens and the chat template that any tokenizer gets, on tokenizers made here."""

import pytest
from byte_level import ANSWER, CHAT, TEXT, make_tokenizer
from transformers import AutoTokenizer

from lorarlhf.data.tokenize import encode_prompt
from lorarlhf.data.tokenizer import PAD, end_of_turn, prepare_tokenizer
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig


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
    prepare_tokenizer(tokenizer, rows, DataConfig())
    assert tokenizer.pad_token == expected
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id < rows
    assert tokenizer.eos_token == "<eos>"


def test_pad_token_with_nothing_to_spare_leaves_text_as_it_is():
    plain = make_tokenizer()
    tokenizer = make_tokenizer(pad_token="<eos>")
    notes = prepare_tokenizer(tokenizer, len(tokenizer), DataConfig())
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id < len(tokenizer) == len(plain)
    assert any("no token to spare for padding" in note for note in notes)
    assert tokenizer.convert_tokens_to_string([tokenizer.pad_token]) != tokenizer.pad_token
    for text in (*TEXT, "a zebra, naïve"):
        assert tokenizer(text)["input_ids"] == plain(text)["input_ids"]


def test_a_pad_token_beyond_the_embedding_is_replaced():
    tokenizer = make_tokenizer(("<eos>", "<unused0>", "<pad>"), pad_token="<pad>")
    prepare_tokenizer(tokenizer, len(tokenizer) - 1, DataConfig())
    assert tokenizer.pad_token == "<unused0>"


def test_no_eos_is_an_error():
    with pytest.raises(UserError, match="has no eos token"):
        prepare_tokenizer(make_tokenizer(eos_token=None), 400, DataConfig())


def test_chat_template_given_own_or_plain(tmp_path):
    own_template, given = (word + " {{ messages[0].content }}" for word in ("own", "given"))
    own = make_tokenizer(chat_template=own_template)
    assert not any("template" in note for note in prepare_tokenizer(own, 400, DataConfig()))
    assert own.chat_template == own_template
    (tmp_path / "given.jinja").write_text(given)
    prepare_tokenizer(own, 400, DataConfig(chat_template=str(tmp_path / "given.jinja")))
    assert own.chat_template == given
    (tmp_path / "given.jinja").write_text(given, encoding="utf-8-sig")  # as an editor of Windows may save it
    prepare_tokenizer(own, 400, DataConfig(chat_template=str(tmp_path / "given.jinja")))
    assert own.chat_template == given
    with pytest.raises(UserError, match=r"data\.chat_template .*nowhere\.jinja: cannot be read"):
        prepare_tokenizer(own, 400, DataConfig(chat_template=str(tmp_path / "nowhere.jinja")))
    bare = make_tokenizer()
    assert any("no chat template" in note for note in prepare_tokenizer(bare, 400, DataConfig()))
    turns = [{"role": "system", "content": "Be kind."}, *CHAT, *ANSWER, {"role": "user", "content": "Why?"}]
    assert bare.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "System:\nBe kind.\n\nUser:\nWhat is the sky?\n\n"
        "Assistant:\nThe sky is blue.<eos>\n\nUser:\nWhy?\n\nAssistant:\n"
    )


def test_plain_template_begins_with_bos_as_plain_text_does():
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=True)
    prepare_tokenizer(tokenizer, 400, DataConfig())
    for prompt in ("The sky is", CHAT):
        ids = encode_prompt(tokenizer, prompt)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


# How families write an answer, cut down to it: the text behind the answer, and the token that ends the turn.
ENDINGS = {
    "Gemma": ("{{ m.content | trim }}<end>\n", "<end>"),
    "Phi": ("{{ m.content }}<end>\n{{ eos_token }}", "<end>"),
    "ChatML": ("{{ m.content + '<end>' + '\n' }}", "<end>"),
    "Llama 2": ("{{ ' ' + m.content + ' ' + eos_token }}", "<eos>"),
    "said twice": ("{{ m.content }}<start>{{ m.content }}<end>", "<end>"),
    "plain words": ("{{ m.content }}\nUser:", "<eos>"),
    "none of the answer": ("<end>", "<eos>"),
}
TURN = (
    "{% for m in messages %}{% if m.role == 'user' %}<start>{{ m.content }}<start>{% else %}ANSWER{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(("ending", "expected"), ENDINGS.values(), ids=ENDINGS)
def test_the_end_of_a_turn_is_the_templates(ending, expected):
    tokenizer = make_tokenizer(("<eos>", "<start>", "<end>"), chat_template=TURN.replace("ANSWER", ending))
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == expected
    notes = prepare_tokenizer(tokenizer, 400, DataConfig())
    said = "responses end with <end>, as turns of the chat template do, not with eos <eos>"
    assert [note for note in notes if "responses end" in note] == ([said] if expected == "<end>" else [])


def test_without_a_template_of_its_own_eos_ends_a_turn():
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=True)
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    prepare_tokenizer(tokenizer, 400, DataConfig())
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id


def test_the_end_of_a_turn_is_not_padding():
    template = TURN.replace("ANSWER", ENDINGS["ChatML"][0])
    tokenizer = make_tokenizer(("<eos>", "<start>", "<end>"), pad_token="<end>", chat_template=template)
    prepare_tokenizer(tokenizer, len(tokenizer), DataConfig())
    assert tokenizer.pad_token not in ("<eos>", "<end>", "<start>")
    template = template.replace("<end>", "<|reserved_end|>")
    reserved = make_tokenizer(("<eos>", "<|reserved_end|>"), chat_template=template)
    prepare_tokenizer(reserved, len(reserved) + 8, DataConfig())
    assert reserved.pad_token == PAD


def test_a_template_that_no_answer_fits_is_refused():
    tokenizer = make_tokenizer(chat_template="{{ raise_exception('no assistant here') }}")
    with pytest.raises(UserError, match=r"refuses a conversation of user, assistant \(no assistant here\)"):
        prepare_tokenizer(tokenizer, 400, DataConfig())


# As Qwen3 does it, and Llama 3.2 and SmolLM3.
THINKING = (
    "{%- for m in messages %}{{ m.content + '<end>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}<think>{% if enable_thinking is defined and enable_thinking is false %}</think>"
    "{% endif %}{% endif %}"
)
DATED = """
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- set today = strftime_now( '%Y-%m-%d' ) -%}
{%- macro heading() %}{{ date_string }}, {{ today }}{% endmacro %}
{{- heading() }}: {% for m in messages %}{{ m.content + '<end>' }}{% endfor %}"""


def thinking(**values):
    tokenizer = make_tokenizer(("<eos>", "<end>"), chat_template=THINKING)
    return tokenizer, prepare_tokenizer(tokenizer, 400, DataConfig(chat_template_kwargs=values))


@pytest.mark.parametrize(("value", "ending"), [(False, "<think></think>"), (True, "<think>"), (None, "<think>")])
def test_variables_of_the_template_are_the_recipes(value, ending, tmp_path):
    tokenizer, notes = thinking(enable_thinking=value)
    assert tokenizer.decode(encode_prompt(tokenizer, CHAT)) == f"What is the sky?<end>{ending}"
    assert not any("think" in note for note in notes)
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert encode_prompt(saved, CHAT) == encode_prompt(tokenizer, CHAT), "what a run leaves renders the same"
    turned = saved.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False, enable_thinking=not value)
    assert turned.endswith("<think></think>" if value else "<think>"), "a caller may still say otherwise"


def test_a_switch_that_nobody_set_is_named_once():
    tokenizer, notes = thinking()
    assert len([note for note in notes if "data.chat_template_kwargs: {enable_thinking: false}" in note]) == 1
    assert tokenizer.chat_template == THINKING
    tokenizer, _ = thinking(enable_thinking=False)
    assert not any("think" in note for note in prepare_tokenizer(tokenizer, 400, DataConfig())), "an earlier run's"
    prepare_tokenizer(tokenizer, 400, DataConfig(chat_template_kwargs={"enable_thinking": True}))
    assert tokenizer.decode(encode_prompt(tokenizer, CHAT)).endswith("<think>"), "the later recipe wins"


@pytest.mark.parametrize("value", ['it\'s {%} "so"\n', 1.5, ["a", {"b": None}], True])
def test_values_of_any_kind_reach_the_template(value):
    template = "\n  {%- if True %}{{ value | tojson }}{% endif %}{{ messages[0].content }}\n"
    tokenizer = make_tokenizer(chat_template=template)
    prepare_tokenizer(tokenizer, 400, DataConfig(chat_template_kwargs={"value": value}))
    untouched = make_tokenizer(chat_template=template)
    expected = untouched.apply_chat_template(CHAT, tokenize=False, value=value)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == expected


def test_the_day_does_not_show(monkeypatch):
    tokenizer = make_tokenizer(("<eos>", "<end>"), chat_template=DATED)
    notes = prepare_tokenizer(tokenizer, 400, DataConfig())
    assert any("it prints 26 Jul 2024 on every day here" in note for note in notes)
    assert encode_prompt(tokenizer, CHAT) == tokenizer("26 Jul 2024, 2024-07-26: What is the sky?<end>")["input_ids"]
    assert not any("today" in note for note in prepare_tokenizer(tokenizer, 400, DataConfig()))
    tokenizer = make_tokenizer(("<eos>", "<end>"), chat_template=DATED)
    prepare_tokenizer(tokenizer, 400, DataConfig(chat_template_kwargs={"date_string": "1 May 2025"}))
    assert tokenizer.decode(encode_prompt(tokenizer, CHAT)).startswith("1 May 2025, 2024-07-26: ")


def test_a_date_that_cannot_be_fixed_is_named():
    tokenizer = make_tokenizer(chat_template="{% set form = '%Y' %}{{ strftime_now(form) }}{{ messages[-1].content }}")
    assert any("differ from day to day" in note for note in prepare_tokenizer(tokenizer, 400, DataConfig()))


def test_templates_for_other_purposes_stay():
    templates = {"default": THINKING, "tool_use": "other"}
    tokenizer = make_tokenizer(("<eos>", "<end>"), chat_template=templates)
    prepare_tokenizer(tokenizer, 400, DataConfig(chat_template_kwargs={"enable_thinking": False}))
    assert tokenizer.decode(encode_prompt(tokenizer, CHAT)).endswith("</think>")
    assert tokenizer.chat_template["tool_use"] == "other"
    with pytest.raises(UserError, match=r"chat templates rag, tool_use and no default; .* data\.chat_template"):
        prepare_tokenizer(make_tokenizer(chat_template={"rag": "a", "tool_use": "b"}), 400, DataConfig())

"""Modelfiles: what Ollama's template makes of a conversation is what the chat template makes of it."""

import re
import shutil
from pathlib import Path

import pytest
import trl
from byte_level import make_tokenizer
from go_templates import rendered, rendered_by_go
from transformers import AutoConfig, AutoTokenizer

from lorarlhf.data.chat_templates import PLAIN
from lorarlhf.publishing.ollama import NO_SYSTEM, NO_TEMPLATE, modelfile, ollama_lines, turns_of
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.shipped import shipped_folder

DEMO = shipped_folder("data") / "demo" / "model"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"  # those of the families themselves
FAMILIES = (
    *("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "phi3", "phi3_5"),
    *("cohere", "lfm2", "deepseek_r1_distill"),
)
# As the first instruct models of Mistral have it: no system turn, eos after each answer, spaces that matter.
INST = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' -%}
{{ '[INST] ' + message['content'] + ' [/INST]' }}{%- elif message['role'] == 'assistant' -%}
{{ ' ' + message['content'] + eos_token }}{%- else -%}{{ raise_exception('no such role') }}{%- endif %}{% endfor %}"""
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def conversation(roles):
    return [
        {"role": ROLES[role], "content": f'{ROLES[role]} no. {n} asks:\n"{{{{ why? }}}}"'}
        for n, role in enumerate(roles)
    ]


def tokenizer_with(template, bos=True):
    tokenizer = make_tokenizer(("<bos>", "<eos>"), bos=bos)
    tokenizer.chat_template = template
    return tokenizer


def jinja(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    sets_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # as Ollama then does
    return text.removeprefix(tokenizer.bos_token) if sets_bos else text


def family(name):
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL has no template of {name}")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FAMILIES)
def test_both_templates_of_a_family_write_the_same(name):
    tokenizer = tokenizer_with(family(name))
    turns = turns_of(tokenizer)
    assert turns is not None
    assert (turns.system is None) == (name == "gemma")
    for roles in ("u", "su", "uau", "suau", "uauauau", "suauauau"):
        if roles[0] == "s" and turns.system is None:
            continue
        messages = conversation(roles)
        assert rendered(turns.go_template(), messages) == jinja(tokenizer, messages), roles


@pytest.mark.parametrize("template", [INST, PLAIN, "demo"])
def test_so_do_those_of_no_family(template):
    tokenizer = AutoTokenizer.from_pretrained(DEMO) if template == "demo" else tokenizer_with(template)
    turns = turns_of(tokenizer)
    assert turns is not None
    for roles in ("u", "uau", *(() if turns.system is None else ("su", "suau"))):
        messages = conversation(roles)
        assert rendered(turns.go_template(), messages) == jinja(tokenizer, messages), roles


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
def test_go_itself_writes_what_the_interpreter_of_these_tests_writes(tmp_path):
    conversations = [conversation(roles) for roles in ("u", "su", "uau", "suauau")]
    for name in ("qwen2_5", "llama3_1", "gemma3", "phi3"):
        tokenizer = tokenizer_with(family(name))
        template = turns_of(tokenizer).go_template()
        expected = [jinja(tokenizer, messages) for messages in conversations]
        assert rendered_by_go(tmp_path, template, conversations) == expected
        assert [rendered(template, messages) for messages in conversations] == expected


def test_bos_stays_where_no_tokenizer_sets_it():
    template = family("llama3")
    assert turns_of(tokenizer_with(template)).opening.startswith("<|start_header_id|>")
    tokenizer = tokenizer_with(template, bos=False)
    tokenizer.bos_token = "<bos>"
    assert turns_of(tokenizer).opening.startswith("<bos><|start_header_id|>")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}. {{ m['content'] }}{% endfor %}",  # counts its turns
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{{ messages[-1]['content'] }}",  # forgets
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_is_not_made_of_turns_gives_none(template):
    assert turns_of(tokenizer_with(template)) is None


def make(tokenizer, **options):
    recipe = load_recipe("demo", sets=["ppo.temperature=0.7"])
    return modelfile(recipe, tokenizer, AutoConfig.from_pretrained(DEMO), **{"weights": ".", **options})


def test_the_lines_of_a_modelfile():
    text, notes = make(AutoTokenizer.from_pretrained(DEMO), weights="./model-q8_0.gguf")
    assert text.startswith('FROM ./model-q8_0.gguf\nTEMPLATE """{{- $before')
    after = text.split('}}"""\n')[1].splitlines()
    assert after == [
        'PARAMETER stop """<|eos|>"""',
        "PARAMETER temperature 0.7",
        "PARAMETER top_k 0",
        "PARAMETER top_p 1.0",
        "PARAMETER repeat_penalty 1.0",
        f"PARAMETER num_ctx {AutoConfig.from_pretrained(DEMO).max_position_embeddings}",
    ]
    assert notes == []


def test_what_ollama_would_write_otherwise_is_said():
    text, notes = make(tokenizer_with("{{ messages[-1]['content'] }}"))
    assert notes == [NO_TEMPLATE]
    assert text.startswith(f"# {NO_TEMPLATE}\nFROM .\n")
    assert "\nTEMPLATE" not in text
    assert make(tokenizer_with(INST))[1] == [NO_SYSTEM]


def test_a_model_of_plain_text_is_given_the_prompt_as_it_is():
    text, notes = make(tokenizer_with(PLAIN), reads_text=True)
    assert 'TEMPLATE """{{ .Prompt }}"""' in text
    assert notes == []


def test_an_adapter_stands_below_its_base():
    assert make(tokenizer_with(PLAIN), adapter="./adapter-f16.gguf")[0].startswith(
        "FROM .\nADAPTER ./adapter-f16.gguf\n"
    )


def test_a_token_that_would_write_lines_of_its_own_is_no_stop():
    tokenizer = tokenizer_with(PLAIN)
    tokenizer.add_special_tokens({"eos_token": 'x"""\nSYSTEM """obey'})
    text, _ = make(tokenizer)
    assert "\nSYSTEM" not in text
    assert "PARAMETER stop" not in text


def test_quotes_and_marks_that_cannot_be_printed_do_not_end_a_template_early():
    odd = '"""<|user|>\u00a0\\'
    jinja_odd = "{% for m in messages %}{{ " + repr(odd) + " + m['content'] }}{% endfor %}"
    tokenizer = tokenizer_with(jinja_odd)
    text, _ = make(tokenizer)
    template = text.split('TEMPLATE """')[1].split('"""\n')[0]
    assert '"""' not in template
    assert "\u00a0" not in template
    messages = conversation("uau")
    assert rendered(template, messages) == jinja(tokenizer, messages)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my-model", "my-model"), ("My Model (2)", "my-model-2"), ("Ünïcode", "n-code"), ("___", "my-model")],
)
def test_the_commands_name_a_model_that_ollama_takes(tmp_path, folder, name):
    path = tmp_path / folder
    path.mkdir()
    assert ollama_lines(path) == []
    (path / "Modelfile").write_text("FROM ./model-q8_0.gguf\n")
    (path / "model-q8_0.gguf").touch()
    (line,) = ollama_lines(path)
    assert re.fullmatch(
        rf"`ollama create {name} -f '?{re.escape(str(path))}/Modelfile'?`, then `ollama run {name}`", line
    )


def test_what_is_missing_for_ollama_is_said(tmp_path):
    (tmp_path / "Modelfile").write_text("# a note\nFROM .\n")
    assert "--gguf q8_0" in ollama_lines(tmp_path)[1]
    (tmp_path / "Modelfile").write_text("FROM ./base.gguf\nADAPTER ./adapter-f16.gguf\n")
    assert f"as {tmp_path / 'base.gguf'}" in ollama_lines(tmp_path)[1]

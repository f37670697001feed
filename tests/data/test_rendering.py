"""Chat templates that are programs by somebody else: one line, whatever they do."""

import signal
import time

import pytest
from byte_level import CHAT, make_tokenizer
from elsewhere import TEMPLATES

from lorarlhf.data import rendering
from lorarlhf.data.rendering import render
from lorarlhf.data.tokenizer import prepare_tokenizer
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig

SAID = "{{ messages[0].content }}"


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 1)
    monkeypatch.setattr(rendering, "MEMORY", 2**28)


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_template_may_not_do(little, tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer(chat_template=template)
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        render(tokenizer, CHAT, add_generation_prompt=True)
    assert time.monotonic() - began < 5
    assert TEMPLATES[template] in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_limits_end_with_the_rendering():
    """Else whatever comes after would be stopped in its place."""
    before = signal.getsignal(signal.SIGALRM), rendering.resource.getrlimit(rendering.resource.RLIMIT_AS)
    assert render(make_tokenizer(chat_template=SAID), CHAT, add_generation_prompt=False) == CHAT[0]["content"]
    after = signal.getsignal(signal.SIGALRM), rendering.resource.getrlimit(rendering.resource.RLIMIT_AS)
    assert before == after
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("template", ["Hello!", "{{ messages | length }}"])
def test_a_template_that_leaves_out_what_is_said(template):
    with pytest.raises(UserError, match="leaves out what the user says"):
        prepare_tokenizer(make_tokenizer(chat_template=template), 400, DataConfig())


@pytest.mark.parametrize(
    "content", [b"-----BEGIN PRIVATE KEY-----\nabc", b"token = messages", b"\xff", b"{{ messages }}" + b" " * 2**20]
)
def test_no_other_file_becomes_a_template(tmp_path, content):
    """It would go into the run and its export."""
    path = tmp_path / "file"
    path.write_bytes(content)
    tokenizer = make_tokenizer(chat_template=SAID)
    with pytest.raises(UserError, match=r"data\.chat_template"):
        prepare_tokenizer(tokenizer, 400, DataConfig(chat_template=str(path)))
    assert tokenizer.chat_template == SAID


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "a\0b", "x" * 300, "~nobody-of-that-name/t.jinja"])
def test_paths_that_are_no_template(path):
    with pytest.raises(UserError, match=r"data\.chat_template|no such user"):
        prepare_tokenizer(make_tokenizer(chat_template=SAID), 400, DataConfig(chat_template=path))

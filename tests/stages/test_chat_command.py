"""`lorarlhf chat`: what is typed or piped, and what is said of it."""

import io
import sys

import pytest
from chats import HELLO
from rich.console import Console

from lorarlhf.cli import chat as chat_cli
from lorarlhf.errors import UserError
from lorarlhf.preferences.labelling import Task
from lorarlhf.preferences.pairs import make_pair
from lorarlhf.stages.chat import Best, Said


def test_lines_of_a_pipe_are_answered(piped, chat_run, tmp_path):
    lines = f"{HELLO}\n\n/regen\n/best 3\n/nope 1\n/best x\n/help\n"
    code, out, err = piped(lines, "chat", "--run", chat_run.path, "--seed", 1)
    assert code == 0, err
    assert len(out.splitlines()) == 3, "answers alone"
    assert "cut at the limit" in err
    assert "Error: /nope: no such command; there are /regen, /best N, /compare, /system TEXT, /reset, /help\n" in err
    assert "Error: /best x: how many answers" in err
    scores = [float(score) for score in err.split("scores ")[1].splitlines()[0].split(", ")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert not (chat_run.path / "chat").exists(), "nothing was compared"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "chat: give either --run or --model"),
        (["--run", "r", "--model", "m"], "chat: give either --run or --model"),
        (["--run", "r", "--adapter", "a"], "--adapter: a run has its own"),
        (["--model", "m", "--checkpoint", "last"], "--checkpoint: says which policy of --run"),
        (["--run", "nowhere"], "nowhere: not a run"),
        (["--model", "shipped:demo/model", "--adapter", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_go_together(piped, arguments, message):
    code, _, err = piped("", "chat", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_is_not_utf_8_is_read_as_far_as_it_goes(piped):
    code, out, err = piped(b"\xff\xfe hello\n", "chat", "--model", "shipped:demo/model", "--response-length", 4)
    assert (code, err.count("Error")) == (0, 0)
    assert out


def test_a_stdout_that_is_not_utf_8_gets_what_it_has(monkeypatch, chat):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    monkeypatch.setattr(chat, "answer", lambda line, show: show("é→") or Said("é→", "model"))
    chat_cli._talk(chat, "me")
    assert written.getvalue() == b"\xe9?\n"


@pytest.mark.parametrize("number", ["1", "65", "100000000", "9" * 5000])
def test_the_best_of_too_many_or_too_few_is_one_line(number):
    with pytest.raises(UserError, match="Give a number from 2 to 64, as in /best 4") as error:
        chat_cli._number(number)
    assert "\n" not in str(error.value)
    assert (chat_cli._number("64"), chat_cli._number("")) == (64, 4)


def test_a_model_without_a_template_completes_text(tiny_model, tmp_path, piped):
    code, out, err = piped(
        "once upon a time\n/system be kind\n/compare\n", "chat", "--model", tiny_model("llama"), "--response-length", 8
    )
    assert code == 0
    assert "the model knows no turns: each line is completed as text, on its own" in err
    assert "Error: /system: plain text is completed here" in err
    assert "Error: /compare: needs two policies" in err
    assert out.endswith("\n")


def test_one_key_is_enough_and_others_do_nothing(monkeypatch, chat):
    keys = iter("x\x1bQb")
    monkeypatch.setattr(chat_cli.typer, "getchar", lambda: next(keys))
    assert chat_cli._verdict(interactive=True) == "right"


HOSTILE = "\x1b]0;owned\x07a\tb\rc\x9b2J\x7f"
HARMLESS = "\ufffd]0;owned\ufffda\tb\ufffdc\ufffd2J\ufffd"


@pytest.mark.parametrize(("terminal", "shown"), [(True, HARMLESS), (False, HOSTILE)])
def test_control_characters_of_the_model_reach_pipes_alone(monkeypatch, chat, capsys, terminal, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(chat, "answer", lambda line, show: show(f"{HOSTILE}\n") or Said(HOSTILE, "model"))
    monkeypatch.setattr(chat, "best", lambda n: Best(HOSTILE, [1.0, 0.0]))
    for line in ("hello", "/best"):
        chat_cli._obey(chat, line, interactive=False)
        assert capsys.readouterr().out.startswith(f"{shown}\n")
    pair = make_pair("p", HOSTILE, "b")
    chat_cli._print_sides(Task("t", pair, False, "a"), interactive=False)
    assert capsys.readouterr().out == f"a: {shown}\nb: b\n"


def test_control_characters_of_the_model_do_not_reach_the_table(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("rich.console.Console", lambda: Console(width=100, color_system=None))
    chat_cli._print_sides(Task("t", make_pair("p", HOSTILE, "b"), False, "a"), interactive=True)
    assert not chat_cli.CONTROL.search(capsys.readouterr().out)


def test_ctrl_c_at_the_prompt_and_ctrl_d(monkeypatch, chat, capsys):
    lines = iter([KeyboardInterrupt, "/help", EOFError])

    def typed(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)
    chat_cli._talk(chat, "me")
    assert "stopped; Ctrl-D leaves\n/regen" in capsys.readouterr().err

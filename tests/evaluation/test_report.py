"""What a person sees of an evaluation."""

import json

import pytest
from rich.console import Console

from lorarlhf.evaluation.report import SAMPLES_SHOWN, counting, samples_table, show_samples


def test_progress_in_plain_lines(capsys):
    with counting(Console(), "scored", 1200) as advance:
        for _ in range(40):
            advance(30)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert (lines[0], lines[-1]) == ("scored 120/1,200", "scored 1,200/1,200")


def test_progress_on_a_terminal(capsys):
    with counting(Console(force_terminal=True), "scored", 10) as advance:
        advance(10)
    assert "100%" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_samples_are_shown_as_they_are(capsys, terminal):
    responses = [f"[bold]{i}[/] so" for i in range(10)]
    show_samples(Console(force_terminal=terminal, width=80), ["why?"] * 10, responses, ["[red]no"] * 10, "Customer")
    out = capsys.readouterr().out
    assert out.count("why?") == out.count("[red]no") == SAMPLES_SHOWN
    assert "[bold]3[/] so" in out
    assert "[bold]4[/] so" not in out
    assert "Customer" in out


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_samples_may_hold_what_unicode_calls_the_end_of_a_line(tmp_path, separator):
    row = {"iteration": 4, "prompt": "Hello.", "response": f"Yes.{separator}No.", "reward": 1.0}
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n" + json.dumps({**row, "iteration": 8}) + "\n", "utf-8")
    assert samples_table(path, 4).row_count == 1

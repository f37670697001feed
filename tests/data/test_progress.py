"""Nobody waits for rows in silence, and nobody is told of what takes no time."""

import io
import logging

import pytest
from rich.console import Console

from lorarlhf.data import progress
from lorarlhf.data.progress import with_progress


@pytest.fixture
def seconds(monkeypatch, caplog):
    """`seconds(step)`: so much time passes between two looks at the clock."""
    caplog.set_level(logging.INFO, logger="lorarlhf")

    def set_up(step):
        now = iter(range(0, 10_000, step))
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))

    return set_up


def test_lines_come_ever_less_often(seconds, caplog):
    seconds(2)  # at each 100 rows
    console = Console(file=io.StringIO(), force_terminal=False)
    assert list(with_progress(range(3000), "a.jsonl: read", console=console)) == list(range(3000))
    assert console.file.getvalue() == ""
    assert caplog.messages == [
        "a.jsonl: read: 200 rows in 6 seconds, and going on",
        "a.jsonl: read: 400 rows in 10 seconds, and going on",
        "a.jsonl: read: 900 rows in 20 seconds, and going on",
        "a.jsonl: read: 1,900 rows in 40 seconds, and going on",
    ]


def test_a_bar_on_a_terminal_and_nothing_of_it_is_left(seconds, caplog, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    rows = with_progress(range(500), "a.jsonl: read", console=console)
    assert next(rows) == 0
    assert "a.jsonl: read" in console.file.getvalue()
    assert list(rows) == list(range(1, 500))
    assert console.file.getvalue().endswith("\x1b[2K"), "the bar is still there"
    assert caplog.messages == []


def test_the_quick_and_the_quiet_are_left_alone(seconds, caplog):
    seconds(1)
    console = Console(file=io.StringIO(), force_terminal=True)
    assert list(with_progress(range(300), "a.jsonl: read", console=console)) == list(range(300))
    caplog.set_level(logging.ERROR, logger="lorarlhf")
    assert list(with_progress(range(3000), "a.jsonl: read", console=console)) == list(range(3000))
    assert console.file.getvalue() == ""
    assert caplog.messages == []

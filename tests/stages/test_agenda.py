"""The steps of a recipe on a terminal, and where there is none."""

import io

import pytest
from rich.console import Console

from lorarlhf.display import StageDisplay
from lorarlhf.stages.agenda import Agenda, clock


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=60, height=30)


def last_frame(console: Console) -> str:
    """What stands on the terminal after the last time that a live display was drawn over."""
    return console.file.getvalue().rpartition("\x1b[2K")[2]


def test_the_list_stays_with_times_and_results(console):
    left = iter([""])
    with Agenda(["reward model", "policy"], console, lambda: next(left, "about 1:00 left")) as agenda:
        agenda.begin(1)
        agenda.end(1, ["accuracy [64.0%] of a line that is longer than there is room for", "more"])
        agenda.begin(2)
        console.print("[not markup]", markup=False)
        agenda.end(2, ["first", "last"], kept=-1)
        agenda.live.refresh()
        assert "…" in last_frame(console), "one line each while it goes on"
    frame = last_frame(console)
    assert "✓" in frame
    assert "…" not in frame
    assert "accuracy [64.0%] of a line that is longer than there is room for" in " ".join(frame.split())
    assert "last" in frame
    assert "in all" in frame
    assert "about 1:00 left" in frame
    assert "[green]" not in console.file.getvalue()


def test_the_display_of_a_stage_hangs_below(console, tmp_path):
    with Agenda(["reward model", "policy"], console) as agenda:
        agenda.begin(1)
        display = StageDisplay("reward", "step", {"loss": "loss"}, tmp_path, console=console)
        with display:
            display.begin(4)
            display.log({"step": 1, "loss": 0.5})
            agenda.live.refresh()
            frame = last_frame(console)
    assert frame.index("policy") < frame.index("0.500")


def test_plain_headings_elsewhere(capsys):
    with Agenda(["reward model", "policy"], Console(width=60)) as agenda:
        agenda.begin(1, ", done already")
        agenda.end(1, ["in [a] folder"])
    assert capsys.readouterr().out == "\n1/2 reward model, done already\n   in [a] folder\n"


def test_clock():
    assert [clock(59.9), clock(61), clock(3723)] == ["0:59", "1:01", "1:02:03"]

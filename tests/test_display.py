"""What a person sees while a stage runs, and the rows of `metrics.jsonl`."""

import io
import json

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from lorarlhf.display import StageDisplay, metrics_table, read_rows
from lorarlhf.evaluation.report import samples_table
from lorarlhf.recipe.stages import STAGES
from lorarlhf.training.progress import DisplayCallback

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture
def start(tmp_path):
    """`start(stage, ...)`: a display that has begun, and `log(step, **numbers)` for it, as a trainer calls it."""

    def make(stage="reward", resumed=False, done=0, terminal=False, total=20):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
        info = STAGES[stage]
        columns = {**info.columns, "accuracy": "accuracy", "margin": "margin"}  # as a reward model's objective adds
        display = StageDisplay(info.name, info.unit, columns, tmp_path / stage, resumed, console)
        display.begin(total, done)
        callback = DisplayCallback(display)
        state, control = TrainerState(max_steps=total), TrainerControl()

        def log(step, **numbers):
            state.global_step = step
            callback.on_step_end(None, state, control)
            callback.on_log(None, state, control, numbers)

        return display, log

    return make


def text(progress):
    return progress.console.file.getvalue()


def test_a_row_is_a_json_object_on_a_line(start):
    progress, log = start()
    log(1, loss=0.5, accuracy=1.0)
    log(2, loss=0.25, text="naïve\n")
    lines = progress.path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5, "accuracy": 1.0},
        {"step": 2, "loss": 0.25, "text": "naïve\n"},
    ]
    assert read_rows(progress.path, "step") == [json.loads(line) for line in lines]


def test_no_rows_without_a_file(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl", "step") == []


def test_closing_statistics_are_not_a_row(start):
    progress, log = start()
    log(1, train_runtime=3.0, train_loss=0.1)
    log(1)
    assert read_rows(progress.path, "step") == []


def test_plain_lines_where_there_is_no_terminal(start):
    progress, log = start()
    with progress:
        log(5, loss=0.5, accuracy=0.75, grad_norm=3.0)
        log(20, loss=1234.5, margin=-0.1234)
    first, last = text(progress).splitlines()
    assert first.startswith("reward 5/20  loss 0.500  accuracy 0.750")
    assert last == "reward 20/20  loss 1,234  margin -0.123"
    assert "\x1b" not in text(progress)
    assert "grad_norm" not in text(progress)


def test_what_is_being_done_is_a_line_the_first_time_where_there_is_no_terminal(start):
    progress, log = start("ppo", total=4)
    with progress:
        for iteration in (1, 2):
            for phase in ("rollout", "update"):
                progress.show_phase(phase)
            log(4, iteration=iteration, reward=0.5)
    lines = text(progress).splitlines()
    assert lines[:2] == ["ppo 0/4  rollout", "ppo 0/4  update"]
    assert [line.split()[1] for line in lines[2:]] == ["1/4", "2/4"]


def test_what_is_being_done_stands_beside_the_bar_on_a_terminal(start):
    progress, log = start("ppo", terminal=True, total=4)
    with progress:
        progress.show_phase("rollout")
        progress.live.refresh()
        assert "rollout" in text(progress)
        log(4, iteration=1, reward=0.5)
        assert progress.progress.tasks[0].fields["phase"] == ""


def test_ppo_counts_iterations(start):
    progress, log = start("ppo", total=4)
    log(8, iteration=1, reward=0.5, kl=1.0)
    assert text(progress).startswith("ppo 1/4  reward 0.500  KL 1.000")
    assert read_rows(progress.path, "step") == [{"step": 8, "iteration": 1, "reward": 0.5, "kl": 1.0}]


def test_a_terminal_shows_a_table_and_gets_its_cursor_back(start):
    progress, log = start("ppo", terminal=True, total=2)

    def stage():
        with progress:
            log(1, iteration=1, reward=0.125, kl=2.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage()
    output = text(progress)
    assert output.count(HIDE_CURSOR) == output.count(SHOW_CURSOR) == 1
    assert output.rindex(SHOW_CURSOR) > output.rindex("0.125")
    assert "1/2" in output
    assert "reward" in output


def test_a_fresh_start_empties_what_was_there(start):
    progress, log = start()
    log(1, loss=1.0)
    progress, _ = start()
    assert read_rows(progress.path, "step") == []


def test_going_on_drops_the_rows_after_the_checkpoint(start):
    progress, log = start("ppo", total=4)
    for iteration in (1, 2, 3):
        log(2 * iteration, iteration=iteration, reward=0.1)
        log(2 * iteration, iteration=iteration, eval_reward=0.2)
    progress, log = start("ppo", resumed=True, done=2, total=4)
    assert [row["step"] for row in read_rows(progress.path, "step")] == [2, 2, 4, 4]
    log(6, iteration=3, reward=0.3)
    assert text(progress).startswith("ppo 3/4")
    assert [row["step"] for row in read_rows(progress.path, "step")] == [2, 2, 4, 4, 6]


def test_a_line_cut_short_is_left_out(start):
    progress, log = start()
    log(1, loss=0.5)
    with progress.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in read_rows(progress.path, "step")] == [1]
    progress, log = start(resumed=True, done=1)
    log(2, loss=0.25)
    assert [row["step"] for row in read_rows(progress.path, "step")] == [1, 2]


def test_a_quiet_display_shows_and_writes_nothing(tmp_path):
    console = Console(file=io.StringIO())
    with StageDisplay("ppo", "iteration", {}, tmp_path / "ppo", console=console, quiet=True) as display:
        display.begin(3)
        display.log({"iteration": 1})
    assert not (tmp_path / "ppo").exists()
    assert console.file.getvalue() == ""


def test_a_table_leaves_blank_what_a_row_lacks():
    table = metrics_table([{"step": 1, "loss": 0.5}, {"step": 2, "other": 1.0}], {"step": "step", "loss": "loss"})
    console = Console(file=io.StringIO(), width=40)
    console.print(table)
    assert [line.split() for line in console.file.getvalue().splitlines()] == [["step", "loss"], ["1", "0.500"], ["2"]]


def test_samples_of_one_evaluation_are_shown_as_they_are(tmp_path):
    path = tmp_path / "samples.jsonl"
    prompt = [{"role": "user", "content": "Where?"}]
    rows = [{"iteration": i, "prompt": prompt, "response": f"[bold]aisle {i}", "reward": i + 0.5} for i in (0, 4, 4, 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(samples_table(path, iteration=4, rows=1))
    text = console.export_text()
    assert text.count("Where?") == 1
    assert "[bold]aisle 4" in text
    assert "4.500" in text

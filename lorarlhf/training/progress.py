"""What a person sees of a stage while it runs, and `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorarlhf.data.rows import request_text
from lorarlhf.recipe.sections import Stage

# Column names of the display for the logged numbers that matter.
SHOWN: dict[Stage, dict[str, str]] = {
    "sft": {"loss": "loss", "mean_token_accuracy": "token accuracy", "eval_loss": "held-out loss"},
    "reward": {"loss": "loss", "accuracy": "accuracy", "margin": "margin"},
    "ppo": {
        "reward": "reward",
        "kl": "KL",
        "entropy": "entropy",
        "response_length": "length",
        "tokens_per_second": "tokens/s",
        "peak_memory_gb": "peak GB",
        "eval_reward": "held-out reward",
        "eval_kl": "held-out KL",
    },
}
ROWS_SHOWN = 8


class StageProgress(TrainerCallback):
    """A live display on a terminal, plain lines elsewhere; every logged row goes to `metrics.jsonl`.

    Args:
        stage: which numbers to show.
        folder: the stage's folder.
        resumed: go on with the `metrics.jsonl` that is there; rows after the checkpoint are dropped.
        total: iterations of ppo in all; elsewhere the trainer's steps are counted.
    """

    def __init__(
        self, stage: Stage, folder: Path, resumed: bool, total: int | None = None, console: Console | None = None
    ) -> None:
        self.stage = stage
        self.unit = "iteration" if stage == "ppo" else "step"
        self.path = folder / "metrics.jsonl"
        self.console = console or Console()
        self.rows: list[Mapping[str, Any]] = []
        self.progress = Progress(
            TextColumn(f"[bold]{stage}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
        )
        self.task = self.progress.add_task(stage, total=total)
        self.live = Live(self._picture(), console=self.console, refresh_per_second=4)
        folder.mkdir(parents=True, exist_ok=True)
        if not resumed:
            self.path.write_text("")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        done = max((row[self.unit] for row in kept), default=0)
        self.progress.reset(self.task, total=self.progress.tasks[0].total or state.max_steps, completed=done)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.unit == "step":
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "train_runtime" in logs:  # the trainer's closing statistics
            return
        row = {"step": state.global_step, **logs}
        if self.unit == "iteration":  # ppo has no epochs; the trainer counts one all the same
            row.pop("epoch", None)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.unit in row:
            self.progress.update(self.task, completed=row[self.unit])
        self._show(row)

    def __enter__(self) -> StageProgress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last picture on the screen, and give the cursor back whatever has happened."""
        if self.live.is_started:
            self.live.update(self._picture())
            self.live.stop()

    def _show(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        if self.live.is_started:
            self.live.update(self._picture())
            return
        task = self.progress.tasks[0]
        seconds = task.time_remaining
        left = "" if seconds is None or task.finished else f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        numbers = "  ".join(f"{name} {_number(row[key])}" for key, name in SHOWN[self.stage].items() if key in row)
        self.console.print(
            f"{self.stage} {int(task.completed)}/{int(task.total or 0)}  {numbers}{left}",
            highlight=False,
            soft_wrap=True,
        )

    def _picture(self) -> Group:
        return Group(self.progress, metrics_table(self.rows[-ROWS_SHOWN:], {self.unit: self.unit, **SHOWN[self.stage]}))


def metrics_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """A table of the rows' numbers; a number a row lacks is left blank."""
    table = Table(box=None, padding=(0, 2))
    for name in columns.values():
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(_number(row[key]) if key in row else "" for key in columns))
    return table


def samples_table(path: Path, iteration: int, rows: int = 4) -> Table:
    """Prompt, response and reward of the first samples that one evaluation wrote to `samples.jsonl`."""
    table = Table("Prompt", "Response", "Reward", show_lines=True)
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for sample in [sample for sample in samples if sample["iteration"] == iteration][:rows]:
        table.add_row(escape(request_text(sample["prompt"])), escape(sample["response"]), _number(sample["reward"]))
    return table


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"

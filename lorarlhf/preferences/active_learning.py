"""Pairs in the order of what is least sure, by a reward model that is trained on the labels while more are given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.preferences.label_rows import preference_rows
from lorarlhf.preferences.labelling import Labelling
from lorarlhf.preferences.labels import read_labels
from lorarlhf.recipe.sections import Recipe
from lorarlhf.run import Run

EVERY = 50  # preferences more, and the reward model is trained anew
LOOK_AFTER = 1.0  # seconds
COMMAND = (sys.executable, "-m", "lorarlhf")

# All labels count, few as they are, and no row must have what a labelling page leaves open.
_SETS = ("data.preferences_test=null", "data.test_size=0", "data.max_examples=null", "reward.use_margin=false")


def training_recipe(run: Run) -> Recipe:
    """What a run trains its reward model with, for labels alone. Raises UserError if it is no run."""
    return run.read_recipe(sets=_SETS, stage="reward")


class ActiveLearning:
    """Trains a reward model on the labels, in processes of its own, and orders the pairs that nobody has labelled.

    The first order is by the run's reward model, if it has one; then, whenever `EVERY` more labels have become
    preferences, by one that is trained on all of them with the run's recipe. Nothing of it is kept.

    Args:
        recipe: `training_recipe` of the run.
        say: gets a line about each round. After a command that failed there are no more rounds.
    """

    def __init__(self, labelling: Labelling, run: Run, recipe: Recipe, say: Callable[[str], None]) -> None:
        self.labelling = labelling
        self.run = run
        self.recipe = recipe
        self.say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> ActiveLearning:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._process:
            self._process.terminate()
        self._thread.join()

    def _go_on(self) -> None:
        with tempfile.TemporaryDirectory(prefix="lorarlhf-active-") as folder:
            try:
                self._rounds(Path(folder))
            except UserError as error:
                # Ctrl-C reaches the command as well, and may have ended it before it ends the page.
                if not self._stopped.wait(LOOK_AFTER):
                    self.say(f"no more rounds of --active, the order stays: {error}")

    def _rounds(self, folder: Path) -> None:
        if self.run.has_adapter("reward"):
            self._order(folder, self.run, f"by the reward model of {self.run.path}")
        trained_on, size = 0, -1
        while not self._stopped.wait(LOOK_AFTER):
            path = self.labelling.file.path
            if path.stat().st_size == size:
                continue
            size = path.stat().st_size
            rows = preference_rows(self.labelling.pairs.values(), read_labels(path), False, 0.0).rows
            if len(rows) >= trained_on + EVERY:
                trained_on = len(rows)
                self._order(folder, self._trained(folder, rows), f"by a reward model of {trained_on} preferences")

    def _trained(self, folder: Path, rows: Sequence[dict[str, Any]]) -> Run:
        run = Run(folder / "run")
        shutil.rmtree(run.path, ignore_errors=True)  # that of the round before
        data = self.recipe.data.model_copy(update={"preferences": str(_written(folder / "labels.jsonl", rows))})
        run.write_recipe(self.recipe.model_copy(update={"data": data}))
        self._call(folder, "reward", "--recipe", run.path / "recipe.yaml", "--output-dir", run.path)
        return run

    def _order(self, folder: Path, run: Run, by: str) -> None:
        """Put the pairs first whose scores are nearest, as `lorarlhf sample --pick uncertain` does."""
        began = time.monotonic()
        labelled = {label.pair_id for label in read_labels(self.labelling.file.path)}
        pool = [pair for pair in self.labelling.pairs.values() if pair.id not in labelled]
        rows = [{"prompt": pair.prompt, "chosen": pair.response_a, "rejected": pair.response_b} for pair in pool]
        if not rows:
            return
        scores = folder / "scores.jsonl"
        scores.unlink(missing_ok=True)
        self._call(folder, "score", _written(folder / "pool.jsonl", rows), "--run", run.path, "--out", scores)
        scored = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
        apart = {
            pair.id: abs(row["chosen_score"] - row["rejected_score"]) for pair, row in zip(pool, scored, strict=True)
        }
        self.labelling.order(sorted(apart, key=apart.__getitem__))
        self.say(f"{len(pool)} pairs ordered {by}, in {time.monotonic() - began:.0f} s")

    def _call(self, folder: Path, *arguments: object) -> None:
        """Run a `lorarlhf` command to its end. Raises UserError with its last line if it fails."""
        log = folder / "log.txt"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            if self._stopped.is_set():  # since before there was anything to end
                self._process.terminate()
            status = self._process.wait()
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            raise UserError(f"`lorarlhf {arguments[0]}` ended with {status}: {last.strip()}")


def _written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path

"""Trackers (`report_to`): accelerate's, told the same in every stage, with their files inside the run."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lorarlhf.recipe.sections import Tracker

PROJECT = "lorarlhf"
logger = logging.getLogger(__name__)


class Trackers:
    """All trackers of a stage, from where the block is entered to where it ends. In other processes than the main one
    there are none.

    Args:
        names: as `report_to` has them.
        folder: the stage's, `RUN/STAGE`, by whose names a tracker knows the run.
        settings: of the stage; trackers are told those that are numbers or text.
    """

    def __init__(self, names: Sequence[Tracker], folder: Path, settings: Mapping[str, Any]) -> None:
        self.names = names
        self.folder = folder.resolve()
        self.settings = {key: value for key, value in settings.items() if isinstance(value, (int, float, str))}
        self.started: list[Any] = []

    def __enter__(self) -> Trackers:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if self.names and PartialState().is_main_process:
            _keep_files_in(self.folder.parent)
            for name in self.names:
                tracker: Any = LOGGER_TYPE_TO_CLASS[name](**self._options(name))
                tracker.start()
                tracker.store_init_configuration(self.settings)
                self.started.append(tracker)
            if "trackio" in self.names:  # the command that it says itself looks elsewhere
                logger.info("to look at it: TRACKIO_DIR=%s trackio show", shlex.quote(os.environ["TRACKIO_DIR"]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self.started:
            tracker.finish()

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand on the finite numbers of a logged row, at the optimiser step that it names."""
        numbers = {
            key: value
            for key, value in row.items()
            if key != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        for tracker in self.started:
            tracker.log(numbers, step=int(row["step"]))

    def log_samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show responses as a table in trackers that have one; in TensorBoard as a table in text."""
        columns = list(rows[0])
        cells = [[row[column] for column in columns] for row in rows]
        for tracker in self.started:
            if hasattr(tracker, "log_table"):
                tracker.log_table("samples", columns=columns, data=cells, step=step)
            elif tracker.name == "trackio":
                import pandas as pd
                import trackio

                tracker.log({"samples": trackio.Table(dataframe=pd.DataFrame(cells, columns=columns))}, step=step)
            elif tracker.name == "tensorboard":
                tracker.log({"samples": _markdown([columns, ["---"] * len(columns), *cells])}, step=step)

    def _options(self, name: Tracker) -> dict[str, Any]:
        """What each tracker's class wants to know of project, run and folder, in its own words."""
        run, stage = self.folder.parent, self.folder.name
        title = f"{run.name}-{stage}"
        options: dict[Tracker, dict[str, Any]] = {
            "tensorboard": {"run_name": "tensorboard", "logging_dir": str(self.folder)},
            "trackio": {"run_name": PROJECT, "name": title, "resume": "allow"},
            "wandb": {"run_name": PROJECT, "name": title, "dir": str(run)},
            "mlflow": {"experiment_name": PROJECT, "run_name": title, "logging_dir": (run / "mlflow").as_uri()},
            "swanlab": {"run_name": PROJECT, "experiment_name": title, "logdir": str(run / "swanlog")},
        }
        return options[name]


def _keep_files_in(run: Path) -> None:
    """Trackers that take their folder from the environment alone; what is set there already is left."""
    os.environ.setdefault("TRACKIO_DIR", str(run / "trackio"))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{run / 'mlflow.db'}")


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    lines = [[str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

"""A fault at every write, rename, removal and flush of the stages and of an export: see `tests/write_faults.py`."""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path

from write_faults import Begun, export_fails_and_goes_on

from fault_parts.tally import Tally, Task
from lorarlhf.errors import Stopped
from lorarlhf.recipe.sections import Stage

ESTIMATORS = {"gae": (), "rloo": ("ppo.num_generations=4",), "grpo": ("ppo.num_generations=4",)}


def settings_of(estimator: str) -> tuple[str, ...]:
    return (f"ppo.advantage_estimator={estimator}", *ESTIMATORS[estimator])


def tasks(options: argparse.Namespace) -> dict[str, Task]:
    stages: dict[str, Task] = {stage: partial(try_stage, stage, (), options.every) for stage in ("sft", "reward")}
    algorithms = {name: partial(try_stage, "ppo", settings_of(name), options.every) for name in ESTIMATORS}
    return {**stages, **{f"ppo {name}": task for name, task in algorithms.items()}, "export": try_export}


def try_stage(stage: Stage, sets: tuple[str, ...], every: int, folder: Path) -> Tally:
    begun, tally = Begun.make(folder / "start", *sets), Tally()
    expected, points = begun.uninterrupted(stage, folder / "whole")
    for point in range(0, points, every):
        run = folder / str(point)
        try:
            wrong = "; ".join(begun.fails_and_goes_on(stage, point, run, expected))
        except Stopped:
            raise
        except Exception as error:  # whatever it is, it is counted and told
            wrong = f"at {point}: {type(error).__name__}: {error}"
        tally.add(wrong)
        shutil.rmtree(run)
    tally.more["points"] = points
    return tally


def try_export(folder: Path) -> Tally:
    tally = Tally()
    for wrong in export_fails_and_goes_on(Begun.make(folder / "start"), folder):
        tally.add("; ".join(wrong))
    return tally

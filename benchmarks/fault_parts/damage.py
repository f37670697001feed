"""Every file of a checkpoint damaged in four ways: the one before is taken, and which was passed over is said."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from write_faults import Begun, differences, left_by

from fault_parts.tally import Tally, Task
from fault_parts.writes import ESTIMATORS, settings_of
from lorarlhf.errors import Stopped, UserError
from lorarlhf.manifest import fault_of, numbered_checkpoints
from lorarlhf.recipe.sections import Stage
from lorarlhf.run import Run


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "cut": cut,
    "flipped": flip,
    "emptied": partial(os.truncate, length=0),
}


def tasks(options: argparse.Namespace) -> dict[str, Task]:
    stages: dict[str, Task] = {stage: partial(damage, stage, ()) for stage in ("sft", "reward")}
    return {**stages, **{f"ppo {name}": partial(damage, "ppo", settings_of(name)) for name in ESTIMATORS}}


def damage(stage: Stage, sets: tuple[str, ...], folder: Path) -> Tally:
    begun, tally = Begun.make(folder / "start", *sets), Tally()
    whole = begun.fresh(stage, folder / "whole")
    begun.train(stage, whole)
    expected = left_by(whole, stage)
    newest, before = numbered_checkpoints(whole.stage(stage))
    names = [path.relative_to(newest) for path in sorted(newest.rglob("*")) if path.is_file()]
    tally.more["files"] = len(names)
    for name in names:
        for how, spoil in DAMAGE.items():
            run = _interrupted(whole, stage, folder / "run")
            spoil(run.stage(stage) / newest.name / name)
            wrong = _goes_on(begun, stage, run, newest.name, before.name) or differences(expected, left_by(run, stage))
            tally.add(f"{name} {how}: {', '.join(wrong)}" if wrong else "")
            shutil.rmtree(run.path)
    run = _interrupted(whole, stage, folder / "run")
    for checkpoint in (newest, before):
        cut(run.stage(stage) / checkpoint.name / names[0])
    tally.add(_refused(begun, stage, run, [newest.name, before.name]))
    return tally


def _interrupted(whole: Run, stage: Stage, path: Path) -> Run:
    """A copy from before the adapter and the summary were written."""
    run = Run(shutil.copytree(whole.path, path))
    (run.stage(stage) / "summary.json").unlink()
    (run.stage(stage) / "adapter_config.json").unlink()
    return run


def _goes_on(begun: Begun, stage: Stage, run: Run, damaged: str, before: str) -> list[str]:
    """What is wrong with how the stage goes on from the checkpoint before."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lorarlhf.manifest")
    logger.addHandler(handler)
    try:
        fault = fault_of(run.stage(stage) / damaged)
        begun.train(stage, run, resume=True)
    except Stopped:
        raise
    except Exception as error:  # whatever it is, it is counted and told
        return [f"{type(error).__name__}: {error}"]
    finally:
        logger.removeHandler(handler)
    line = f"{run.stage(stage)}/{damaged}: {fault}; going on from {before}"
    return [] if said == [line] else [f"says {said}, not {line}"]


def _refused(begun: Begun, stage: Stage, run: Run, names: list[str]) -> str:
    """What is wrong with how it ends where no checkpoint is left."""
    try:
        begun.train(stage, run, resume=True)
    except UserError as error:
        line = str(error)
        return "" if "\n" not in line and all(name in line for name in names) else f"all damaged: {line}"
    return "all damaged: taken"

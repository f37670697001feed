"""A fault at any write, rename or flush of a stage or of an export, and whether what is left goes on as if there had
been none. For the tests and for `benchmarks/faults.py`, which tries each point of each stage."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from demo_runs import read_jsonl, save_random_adapter, small_recipe, untimed

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError
from lorarlhf.manifest import fault_of, newest_whole, numbered_checkpoints
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.run import Run
from lorarlhf.stages.export import export_run
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward
from lorarlhf.stages.sft import train_sft

TRAIN = {"sft": train_sft, "reward": train_reward, "ppo": train_ppo}
SETTINGS = (
    *(f"{stage}.max_steps=2" for stage in ("sft", "reward")),
    *(f"{stage}.save_steps=1" for stage in ("sft", "reward")),
    *("ppo.iterations=2", "ppo.save_every=1", "ppo.eval_every=1", "ppo.normalize_reward=true"),
)


class Fault(BaseException):
    """Not caught by anything that catches errors, as no kill is."""


class Writing:
    """Counts what changes a folder, and fails there: before a file is opened, renamed or removed, and in a flush, where
    what has been added to the file is torn first."""

    events = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.symlink", "os.link")

    def __init__(self, folder: Path, at: int | None = None) -> None:
        self.folder = str(folder)
        self.at = at
        self.count = 0
        self.flushed: dict[str, int] = {}  # bytes of each file that the disk has

    def take(self, path: object) -> bool:
        """Whether to fail now."""
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(self.folder):
            return False
        self.count += 1
        return self.count - 1 == self.at

    def hear(self, event: str, args: tuple) -> None:
        writes = event == "open" and (set(args[1] or "") & set("wax+") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if (writes or event in self.events) and self.take(args[0]):
            raise Fault(f"{event} {args[0]}")


heard: list[Writing] = []
sys.addaudithook(lambda event, args: [writing.hear(event, args) for writing in heard] if heard else None)


@contextlib.contextmanager
def faults(folder: Path, at: int | None) -> Iterator[Writing]:
    """Count what is written into the folder; fail at one of them."""
    writing = Writing(folder, at)

    def fsync(handle: int, real=os.fsync) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if writing.take(path):
            if stat.S_ISREG(os.fstat(handle).st_mode):  # torn within what no earlier flush has brought to the disk
                os.ftruncate(handle, (writing.flushed.get(path, 0) + os.fstat(handle).st_size) // 2)
            raise Fault(f"flush of {path}")
        real(handle)
        writing.flushed[path] = os.fstat(handle).st_size

    with mock.patch.object(os, "fsync", fsync):
        heard.append(writing)
        try:
            yield writing
        finally:
            heard.remove(writing)


@dataclass
class Begun:
    """Where stages begin: a run in which the reward model is given, and the base model loaded."""

    recipe: Recipe
    backbone: SharedBackbone
    run: Run

    @classmethod
    def make(cls, folder: Path, *sets: str) -> Begun:
        recipe, run = small_recipe(folder, *SETTINGS, *sets), Run(folder / "begun")
        save_random_adapter(recipe, run, "reward")
        return cls(recipe, load_backbone(recipe.model), run)

    def train(self, stage: Stage, run: Run, resume: bool = False) -> None:
        TRAIN[stage](self.recipe, run, resume=resume, backbone=self.backbone)

    def fresh(self, stage: Stage, path: Path) -> Run:
        """A new run in which the stage can begin."""
        if stage == "ppo":
            shutil.copytree(self.run.path, path)
        return Run(path)

    def uninterrupted(self, stage: Stage, path: Path) -> tuple[dict[str, Any], int]:
        """What the stage leaves without a fault, and at how many points it could have failed."""
        run = self.fresh(stage, path)
        with faults(run.path, None) as writing:
            self.train(stage, run)
        return left_by(run, stage), writing.count

    def fails_and_goes_on(self, stage: Stage, point: int, path: Path, expected: dict[str, Any]) -> list[str]:
        """What is otherwise than without a fault, once the stage has gone on from where a fault left it."""
        run = self.fresh(stage, path)
        try:
            with faults(run.path, point):
                self.train(stage, run)
        except Fault as fault:
            said = f"after a fault at {point}, {fault}"
        else:
            raise RuntimeError(f"{stage} has no point {point} to fail at")
        try:
            newest_whole(run.stage(stage))
            resume = True
        except UserError:
            resume = False
        self.train(stage, run, resume)
        return [f"{name}, {said}" for name in differences(expected, left_by(run, stage))]


def left_by(run: Run, stage: Stage) -> dict[str, Any]:
    """All that a stage leaves but for what the clock writes."""
    folder = run.stage(stage)
    weights = [*folder.glob("*.safetensors"), *folder.glob("best/*.safetensors"), folder / "adapter_config.json"]
    rows = [folder / name for name in ("metrics.jsonl", "samples.jsonl")]
    return {
        "checkpoints": [(path.name, fault_of(path)) for path in numbered_checkpoints(folder)],
        "files": sorted(path.name for path in folder.iterdir()),
        "recipes": [run.read_recipe(), run.read_recipe(stage=stage)],
        "summary": untimed(run.read_summary(stage)),
        **{str(path.relative_to(folder)): path.read_bytes() for path in weights},
        **{path.name: list(map(untimed, read_jsonl(path))) for path in rows if path.is_file()},
    }


def differences(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Names of what is otherwise."""
    return [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]


def export_fails_and_goes_on(begun: Begun, folder: Path) -> Iterator[list[str]]:
    """The same of an export, over an earlier one and into a new folder: for each point, what is otherwise."""
    run = Run(shutil.copytree(begun.run.path, folder / "run"))
    run.write_recipe(begun.recipe, "reward")
    to = folder / "out" / "export"

    def export(at: int | None) -> tuple[bool, int]:
        """Whether it failed, and at how many points it could have."""
        with faults(to.parent, at) as writing:
            try:
                export_run(run, to, "reward", merge=False)
            except Fault:
                return True, writing.count
        return False, writing.count

    _, points = export(None)
    expected = _files_of(to)
    for point in range(points + 1):  # one more: the earlier one is moved
        export(point)
        yield [f"over an earlier one, at {point}"] if _files_of(to) != expected else []
    for point in range(points):
        shutil.rmtree(to)
        failed, _ = export(point)
        wrong = [] if failed else [f"no fault at {point}"]
        if to.exists() and _files_of(to) != expected:
            wrong.append(f"half an export, at {point}")
        export(None)
        if _files_of(to) != expected:
            wrong.append(f"after a fault at {point}")
        yield wrong


def _files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

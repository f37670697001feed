"""A fault at any write, rename or flush of a stage or of an export: what is left goes on as if there had been none."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from demo_runs import read_jsonl, save_random_adapter, small_recipe, untimed

from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import UserError
from lorarlhf.manifest import fault_of, newest_whole, numbered_checkpoints
from lorarlhf.run import Run
from lorarlhf.stages.export import export_run
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward
from lorarlhf.stages.sft import train_sft

TRAIN = {"sft": train_sft, "reward": train_reward, "ppo": train_ppo}
SAMPLED = {"sft": 2, "reward": 1, "ppo": 3}  # points that `make test` tries; `make test-all` tries each
SETTINGS = (
    *(f"{stage}.max_steps=2" for stage in ("sft", "reward")),
    *(f"{stage}.save_steps=1" for stage in ("sft", "reward")),
    *("ppo.iterations=2", "ppo.save_every=1", "ppo.eval_every=1", "ppo.normalize_reward=true"),
)


class Fault(BaseException):
    """Not caught by anything that catches errors, as no kill is."""


class Writing:
    """Counts what changes a folder, and fails there: before a file is opened, renamed or removed, and in a flush, where
    the file is torn first."""

    events = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.symlink", "os.link")

    def __init__(self, folder: Path, at: int | None = None) -> None:
        self.folder = str(folder)
        self.at = at
        self.count = 0

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
def faults(folder: Path, at: int | None, monkeypatch: pytest.MonkeyPatch):
    """Count what is written into the folder; fail at one of them."""
    writing = Writing(folder, at)

    def fsync(handle: int, real=os.fsync) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if writing.take(path):
            if stat.S_ISREG(os.fstat(handle).st_mode):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            raise Fault(f"flush of {path}")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        heard.append(writing)
        try:
            yield writing
        finally:
            heard.remove(writing)


def left_by(run: Run, stage: str) -> dict[str, object]:
    """All that a stage leaves but for what the clock writes."""
    folder = run.stage(stage)
    assert [fault_of(path) for path in numbered_checkpoints(folder)] == [None, None]
    weights = [*folder.glob("*.safetensors"), *folder.glob("best/*.safetensors"), folder / "adapter_config.json"]
    rows = [folder / name for name in ("metrics.jsonl", "samples.jsonl")]
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "recipes": [run.read_recipe(), run.read_recipe(stage=stage)],
        "summary": untimed(run.read_summary(stage)),
        **{str(path.relative_to(folder)): path.read_bytes() for path in weights},
        **{path.name: list(map(untimed, read_jsonl(path))) for path in rows if path.is_file()},
    }


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Recipe, backbone, and a run in which the reward model is given."""
    folder = tmp_path_factory.mktemp("faults")
    recipe = small_recipe(folder, *SETTINGS)
    run = Run(folder / "begun")
    save_random_adapter(recipe, run, "reward")
    return recipe, load_backbone(recipe.model), run


@pytest.fixture(scope="module")
def uninterrupted(begun, tmp_path_factory):
    """`uninterrupted(stage)`: what it leaves without a fault, and at how many points it could have failed."""
    recipe, backbone, start = begun
    known = {}

    def make(stage):
        if stage not in known:
            run = fresh(start, stage, tmp_path_factory.mktemp(stage) / "run")
            with pytest.MonkeyPatch.context() as patch, faults(run.path, None, patch) as writing:
                TRAIN[stage](recipe, run, backbone=backbone)
            known[stage] = left_by(run, stage), writing.count
        return known[stage]

    return make


def fresh(start: Run, stage: str, path: Path) -> Run:
    if stage == "ppo":
        shutil.copytree(start.path, path)
    return Run(path)


def fails_and_goes_on(stage, point, begun, uninterrupted, path, monkeypatch):
    recipe, backbone, start = begun
    expected, _ = uninterrupted(stage)
    run = fresh(start, stage, path)
    with pytest.raises(Fault) as fault, faults(run.path, point, monkeypatch):
        TRAIN[stage](recipe, run, backbone=backbone)
    try:
        newest_whole(run.stage(stage))
        resume = True
    except UserError:
        resume = False
    TRAIN[stage](recipe, run, resume=resume, backbone=backbone)
    actual = left_by(run, stage)
    for name, content in expected.items():
        assert actual[name] == content, f"{name}, after a fault at {point}, {fault.value}"


@pytest.mark.parametrize(("stage", "number"), [(stage, n) for stage, count in SAMPLED.items() for n in range(count)])
def test_a_fault_in_a_stage(stage, number, begun, uninterrupted, tmp_path, monkeypatch):
    _, points = uninterrupted(stage)
    assert points > 40
    point = points * (2 * number + 1) // (2 * SAMPLED[stage])
    fails_and_goes_on(stage, point, begun, uninterrupted, tmp_path / "run", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAIN)
def test_a_fault_at_any_point_of_a_stage(stage, begun, uninterrupted, tmp_path, monkeypatch):
    for point in range(uninterrupted(stage)[1]):
        fails_and_goes_on(stage, point, begun, uninterrupted, tmp_path / str(point), monkeypatch)
        shutil.rmtree(tmp_path / str(point))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fault_at_any_point_of_an_export(begun, tmp_path, monkeypatch):
    recipe, _, start = begun
    run = Run(shutil.copytree(start.path, tmp_path / "run"))
    run.write_recipe(recipe, "reward")
    to = tmp_path / "out" / "export"
    with faults(to.parent, None, monkeypatch) as writing:
        export_run(run, to, "reward", merge=False)
    expected = files_of(to)
    assert writing.count > 10
    over = "over an earlier one"
    for point in range(writing.count + 1):  # one more: the earlier one is moved
        with contextlib.suppress(Fault), faults(to.parent, point, monkeypatch):
            export_run(run, to, "reward", merge=False)
        assert files_of(to) == expected, f"{over}, at {point}"
    for point in range(writing.count):
        shutil.rmtree(to)
        with pytest.raises(Fault), faults(to.parent, point, monkeypatch):
            export_run(run, to, "reward", merge=False)
        assert not to.exists() or files_of(to) == expected
        export_run(run, to, "reward", merge=False)
        assert files_of(to) == expected

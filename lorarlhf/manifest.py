"""Folders that are whole or not there: written aside, flushed, renamed, and listed with size and hash of every file."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from lorarlhf.errors import UserError
from lorarlhf.files import BEING_WRITTEN, flush_folder, flush_names, hash_file, remove_folder
from lorarlhf.json_file import read_object

MANIFEST = "manifest.json"
FORMAT = 2  # of a checkpoint; 1 had no manifest
LAST = "last"  # stands for the number of the newest checkpoint
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which becomes `folder` when the block ends, and only then.

    Whatever kills the process leaves either no folder of that name or one whose files are all on the disk: a rename is
    atomic, and everything is flushed before it.
    """
    part = folder.with_name(folder.name + BEING_WRITTEN)
    remove_folder(part)  # what an earlier process was writing when it was killed
    part.mkdir(parents=True)
    yield part
    _write_manifest(part)
    flush_folder(part)
    remove_folder(folder)  # of this name there may be a damaged one: the new one takes its place
    part.rename(folder)
    flush_names(folder.parent)


def fault_of(folder: Path) -> str | None:
    """Why a folder is not what `written_whole` left there; None if it is."""
    if not (folder / MANIFEST).is_file():
        return f"has no {MANIFEST}, so it is half written or of lorarlhf before 0.2"
    try:
        manifest = read_object(folder / MANIFEST)
        files = dict(manifest["files"])
        written_by = manifest["format"]
    except (UserError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    if written_by != FORMAT:
        return f"is of format {written_by}, and this lorarlhf reads {FORMAT}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if expected != {"size": path.stat().st_size, "sha256": hash_file(path)}:
            return f"{name} is not as it was written"
    return None


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The folders `checkpoint-N` of a stage, newest first."""
    numbered = {
        int(number): path
        for path in folder.glob("checkpoint-*")
        if (number := path.name.removeprefix("checkpoint-")).isdigit()
    }
    return [numbered[n] for n in sorted(numbered, reverse=True)]


def newest_whole(folder: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint of a stage's folder that checks out, and a line for each newer one that does not.

    Raises:
        UserError: there is none.
    """
    passed_over: list[str] = []
    for path in numbered_checkpoints(folder):
        fault = fault_of(path)
        if fault is None:
            return path, passed_over
        passed_over.append(f"{path.name}: {fault}")
    damaged = f" ({'; '.join(passed_over)})" if passed_over else ""
    has_best = (folder / "best" / "adapter_config.json").is_file()
    best = f"; {folder / 'best'} holds the best adapter so far" if has_best else ""
    raise UserError(
        f"{folder}: no checkpoint to resume from{damaged}{best}; begin again with `lorarlhf {folder.name}` without "
        "--resume, which moves the folder aside"
    )


def whole_checkpoints(folder: Path) -> tuple[list[Path], list[str]]:
    """All checkpoints of a stage's folder that check out, oldest first, and a line for each that does not."""
    faults = {path: fault_of(path) for path in reversed(numbered_checkpoints(folder))}
    passed_over = [f"{path}: {fault}" for path, fault in faults.items() if fault]
    return [path for path, fault in faults.items() if fault is None], passed_over


def chosen_checkpoint(folder: Path, choice: str) -> Path:
    """The checkpoint of a stage's folder that `last` or a number means.

    Raises:
        UserError: there is none, or it is damaged; the line lists those there are.
    """
    numbered = {path.name.removeprefix("checkpoint-"): path for path in numbered_checkpoints(folder)}
    path = next(iter(numbered.values()), None) if choice == LAST else numbered.get(choice)
    others = ", ".join([*reversed(numbered), *([LAST] if numbered else []), "best"])
    if path is None:
        raise UserError(f"--checkpoint {choice}: {folder} has no such checkpoint; there is {others}")
    if fault := fault_of(path):
        raise UserError(f"--checkpoint {choice}: {path}: {fault}; there is {others}")
    return path


def find_checkpoint(folder: Path) -> Path:
    """The newest checkpoint that is whole; says which it passes over and why. Raises UserError if there is none."""
    path, passed_over = newest_whole(folder)
    for line in passed_over:
        logger.warning("%s/%s; going on from %s", folder, line, path.name)
    return path


def drop_oldest(folder: Path, keep: int | None) -> None:
    """Remove checkpoints beyond the newest `keep`, which is never less than two; None keeps all.

    Two, since the newest may turn out to be damaged.
    """
    for path in numbered_checkpoints(folder)[checkpoints_kept(keep) :] if keep is not None else ():
        remove_folder(path)


def checkpoints_kept(keep: int | None) -> int:
    """How many stay at least, of a limit that a recipe sets."""
    return max(2, keep or 2)


def _write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n", encoding="utf-8")

"""Files that are whole or as they were: written under another name in their folder, flushed, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

BEING_WRITTEN = ".part"


@contextlib.contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file takes the place of `path` when the block ends, and only then.

    A link of either name goes, and what it leads to stays: a run from elsewhere may hold some.
    """
    if path.is_dir() and not path.is_symlink():  # before anything is made that could not take its place
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + BEING_WRITTEN)
    part.unlink(missing_ok=True)
    try:
        yield part
        flush_file(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    flush_names(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; its folder is made if need be.

    Half a surrogate pair, which UTF-8 has no bytes for, is written as JSON escapes it.
    """
    with written_file(path) as part:
        part.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def written_into(folder: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder, whose files take their places in `folder` when the block ends, one by one.

    Args:
        last: the file that says the others are there, and comes after them.
    """
    if folder.is_symlink():
        folder.unlink()
    part = folder / BEING_WRITTEN
    remove_folder(part)
    part.mkdir(parents=True)
    yield part
    flush_folder(part)
    names = [path.relative_to(part) for path in part.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: (name == Path(last), name)):
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(part / name, folder / name)
    remove_folder(part)
    flush_names(folder)


def remove_folder(path: Path) -> None:
    """A folder, a file or a link of this name is no more; nor is it an error if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """SHA-256 of what a file holds, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(folder: Path) -> None:
    """Everything in it is on the disk, its names too."""
    for path in folder.rglob("*"):
        if path.is_file():
            flush_file(path)
        else:
            flush_names(path)
    flush_names(folder)


def flush_file(path: Path) -> None:
    """What a file holds is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_names(folder: Path) -> None:
    """Names live in the folder, and are flushed with it; Windows opens no folders and does so by itself."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def free_bytes(path: Path) -> int:
    """What is free on the disk where a path is, or will be once its folders are made."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free

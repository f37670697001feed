"""One run, one writer: a file in the run's folder that says which process writes there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from lorarlhf.errors import UserError
from lorarlhf.json_file import read_object
from lorarlhf.recipe.shipped import exists

LOCK = "run.lock"
SAME_START = 10  # seconds: the machine's clock may have been set since


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Nobody else writes into the folder inside the block; a process that holds it already may enter again.

    Of several processes of a launcher the first holds it for all. A lock whose process has ended is taken over. What
    was made of folders for the lock, and in which nothing has come to lie, goes with it.

    Raises:
        UserError: another process writes there, nobody can, or a folder stands in the lock's place.
    """
    check_writable(folder)
    me = {"process": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    lock = folder / LOCK
    if os.environ.get("RANK", "0") != "0" or _holder(lock) == me:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with _one_at_a_time(folder):
        _take(lock, me)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # one of them holds something now
            for path in made:
                path.rmdir()


def check_writable(folder: Path) -> Path:
    """The folder, or what there is of those that it lies in; UserError if nothing can be written there."""
    place = next(path for path in (folder, *folder.absolute().parents) if exists(path))
    if not place.is_dir():
        raise UserError(f"{folder}: {place} is a file, and a run is a folder; give another --output-dir")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: {place.resolve()} cannot be written; give another --output-dir")
    return place


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several processes that find the same stale lock, the second sees that of the first, and does not remove it.

    Not the lock itself: the system's own ends with the process and says nothing of who holds it, or since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _take(lock: Path, me: dict[str, Any]) -> None:
    for _ in range(2):
        lock.parent.mkdir(parents=True, exist_ok=True)  # who held it until now may have taken it along
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(json.dumps(me) + "\n")
        except FileExistsError:
            _check_stale(lock)
            lock.unlink(missing_ok=True)
        else:
            return
    raise _held(lock, _holder(lock) or {})


def _check_stale(lock: Path) -> None:
    """Raise UserError unless the process that holds it is known to have ended, and all that can go is a file."""
    if lock.is_dir() and not lock.is_symlink():
        raise UserError(f"{lock}: is a folder, and a lock is a file; move it away, or give another --output-dir")
    holder = _holder(lock)
    if holder is None:  # perhaps only just made
        time.sleep(0.5)
        holder = _holder(lock)
    if holder is not None and _may_live(holder):
        raise _held(lock, holder)


def _holder(lock: Path) -> dict[str, Any] | None:
    """What the lock says; None if it is not there, or says nothing of the kind. A link is none that was made here."""
    if lock.is_symlink():
        return None
    try:
        holder = read_object(lock)
        return {"process": int(holder["process"]), "host": str(holder["host"]), "started": float(holder["started"])}
    except (UserError, ValueError, KeyError, TypeError):
        return None


def _may_live(holder: dict[str, Any]) -> bool:
    """False where it is known that there is no such process any more; of another host that cannot be known."""
    if holder["host"] != socket.gethostname():
        return True
    try:
        process = psutil.Process(holder["process"])
        ended = process.status() == psutil.STATUS_ZOMBIE  # killed, and nobody has taken note
        return not ended and bool(abs(process.create_time() - holder["started"]) < SAME_START)
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def _held(lock: Path, holder: dict[str, Any]) -> UserError:
    since = datetime.fromtimestamp(holder["started"]).isoformat(" ", "minutes") if holder else "just now"
    who = f"process {holder['process']} on {holder['host']}" if holder else "another process"
    return UserError(
        f"{lock.parent}: {who} writes there, since {since}; wait for it, or give another --output-dir (if it has "
        f"ended, remove {lock})"
    )

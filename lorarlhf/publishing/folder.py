"""The folder of an export: whole or not there, and replacing nothing but an earlier export."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.files import flush_folder, flush_names
from lorarlhf.run import write_json
from lorarlhf.version import __version__

MARKER = "lorarlhf_export.json"  # written last; lists the export's files, so that a later one may replace them


@contextlib.contextmanager
def written_beside(to: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which becomes `to` when the block ends, and only then.

    Raises:
        UserError: `to` cannot be written, or holds anything but an earlier export.
    """
    _check_replaceable(to)
    to = to.resolve()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-")  # beside it: a rename is atomic
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}; give --to another place") from error
    with work:
        folder = Path(work.name) / "new"
        folder.mkdir()
        yield folder
        flush_folder(folder)
        old = Path(work.name) / "old"
        if to.exists():
            to.rename(old)
        try:
            folder.rename(to)
        except BaseException:
            if old.exists():  # it would go with the folder it lies in now
                old.rename(to)
            raise
        flush_names(to.parent)


def write_marker(folder: Path, facts: Mapping[str, Any]) -> None:
    """Say what the folder is and what lies in it, once all of that is there."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(folder / MARKER, {"lorarlhf": __version__, **facts, "files": files})


def _check_replaceable(to: Path) -> None:
    """Only what an earlier export wrote may go: not a file beside it, nor one of its own that was edited since."""
    if not to.exists():
        return
    if not to.is_dir():
        raise UserError(f"{to}: a file of that name exists and is not overwritten; give --to a new folder")
    marker = to / MARKER
    written, when = [MARKER], 0
    if marker.is_file():
        written += json.loads(marker.read_text(encoding="utf-8"))["files"]
        when = marker.stat().st_mtime_ns
    for path in sorted(to.rglob("*")):
        name = path.relative_to(to).as_posix()
        if not path.is_dir() and (name not in written or path.stat().st_mtime_ns > when):
            raise UserError(
                f"{to}: not empty, and {name} is not as an earlier export wrote it; nothing is overwritten, give --to "
                "a new folder"
            )

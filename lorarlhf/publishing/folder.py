"""The folder of an export: whole or not there, and replacing nothing but an earlier export."""

from __future__ import annotations

import contextlib
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.files import flush_folder, flush_names, hash_file
from lorarlhf.json_file import read_object
from lorarlhf.run import write_json
from lorarlhf.version import __version__

MARKER = "lorarlhf_export.json"  # written last: the export's files with their hashes, all that a later one replaces


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
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}
    write_json(folder / MARKER, {"lorarlhf": __version__, **facts, "files": files})
    mode = stat.S_IMODE((folder / MARKER).stat().st_mode)  # of any file that is written here
    for path in paths:  # safetensors makes files that their owner alone can read
        path.chmod(mode)


def exported_files(folder: Path) -> list[str]:
    """Names of the files of an export, with its marker.

    Raises:
        UserError: something else lies there, a link, or a file that is not as it was exported.
    """
    marker = folder / MARKER
    files = read_object(marker).get("files") if marker.is_file() and not marker.is_symlink() else {}
    if not isinstance(files, dict):  # a list, of lorarlhf before 0.2
        raise UserError(f"{marker}: is of an earlier lorarlhf and says too little to check; give --to a new folder")
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or (name != MARKER and files.get(name) != hash_file(path)) or not marker.is_file():
            raise UserError(
                f"{folder}: not empty, and {name} is not as an earlier export wrote it; nothing is overwritten, give "
                "--to a new folder"
            )
        names.append(name)
    return names


def _check_replaceable(to: Path) -> None:
    """Only what an earlier export wrote may go: not a file beside it, nor one of its own that was edited since."""
    if to.is_symlink():
        raise UserError(f"{to}: is a link, which is not followed; give --to the folder itself")
    if not to.exists():
        return
    if not to.is_dir():
        raise UserError(f"{to}: a file of that name exists and is not overwritten; give --to a new folder")
    exported_files(to)

"""The adapters that a stage starts from: one that goes on must find the same.

A checkpoint holds what trains. Reference and reward model are loaded from where they lie, and a stage before that was
trained again has left others there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lorarlhf.errors import UserError
from lorarlhf.files import hash_file
from lorarlhf.json_file import read_object
from lorarlhf.run import WEIGHTS, write_json

ORIGINS = "started_from.json"  # in the stage's folder: name of each adapter to the hash of its weights
logger = logging.getLogger(__name__)


def write_origins(folder: Path, adapters: Mapping[str, Path | None]) -> None:
    """Record what a stage starts from.

    Args:
        folder: the stage's.
        adapters: folder of each, by what people call it; None where the stage does without.
    """
    write_json(folder / ORIGINS, _hashes(adapters))


def check_origins(folder: Path, adapters: Mapping[str, Path | None]) -> None:
    """Raise UserError if the stage would go on with other adapters than it was begun with."""
    if not (folder / ORIGINS).is_file():
        logger.warning(
            "%s does not say which adapters it was begun with (it is of an earlier lorarlhf); if one of them was "
            "trained again since, begin anew without --resume",
            folder,
        )
        return
    before, now = read_object(folder / ORIGINS), _hashes(adapters)
    if others := [_said(name, before.get(name), adapters[name]) for name in now if before.get(name) != now[name]]:
        raise UserError(
            f"--resume: {folder} was begun {' and '.join(others)}; put back what it was begun with (a reward adapter "
            "may lie anywhere: --reward FOLDER), or begin anew without --resume"
        )


def _hashes(adapters: Mapping[str, Path | None]) -> dict[str, str | None]:
    return {name: None if folder is None else hash_file(folder / WEIGHTS) for name, folder in adapters.items()}


def _said(name: str, before: object, folder: Path | None) -> str:
    if folder is None:
        return f"with an adapter of {name}, and there is none now"
    if before is None:
        return f"without an adapter of {name}, and there is one now in {folder}"
    return f"with another adapter of {name} than lies in {folder} now"

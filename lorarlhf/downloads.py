"""What is to be fetched from the Hub is told before it is, and so is a disk without room for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lorarlhf.errors import UserError
from lorarlhf.files import free_bytes

MIB, GIB = 2**20, 2**30
logger = logging.getLogger(__name__)


def announce(source: str, what: str, sizes: Mapping[str, int], folder: Path) -> None:
    """Say how much is fetched of a source; nothing where nothing is.

    Args:
        what: `weights` or `data`.
        sizes: bytes of each file that is not here yet.
        folder: where it will be kept.

    Raises:
        UserError: there is no room for it.
    """
    if not sizes:
        return
    total, free = sum(sizes.values()), free_bytes(folder)
    files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    if total > free:
        raise UserError(
            f"{source}: {readable_bytes(total)} of {what} are to be fetched, and {readable_bytes(free)} are free where "
            f"they are kept, in {folder}; make room, or set HF_HOME to a folder that has it"
        )
    logger.info("%s: fetching %s of %s in %s, once, to %s", source, readable_bytes(total), what, files, folder)


def readable_bytes(count: int) -> str:
    """As `1.5 GiB`, or MiB below one."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"

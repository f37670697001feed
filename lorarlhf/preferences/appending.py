"""Files that people's answers are appended to: read by their owner alone, and no device or link in their place."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_to_append(path: Path) -> BinaryIO:
    """A file to read and append to without a buffer, made with mode 0600 if it is not there.

    Raises:
        OSError: it cannot be opened, or is a link or something else than a file. A link may stand in a run's folder
            that came from elsewhere, and would have somebody else's file written to.
    """
    file = open(path, "a+b", buffering=0, opener=_open)  # noqa: SIM115  # its owner closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file")
    return file


def _open(path: str, flags: int) -> int:
    nofollow = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither; a pipe would wait
    try:
        return os.open(path, flags | nofollow, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link") from None
        raise

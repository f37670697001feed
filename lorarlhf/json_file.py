"""JSON files that may be damaged, or be made by somebody else to do damage."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError, first_line

MOST_BYTES = 64 * 2**20
# What figures of another version, or from elsewhere, raise where they are put into words.
NOT_OURS = (KeyError, TypeError, ValueError, OverflowError, AttributeError)


@contextlib.contextmanager
def telling_of(path: Path) -> Iterator[None]:
    """Inside the block, figures of this file are put into words. Raises UserError where they are none of ours."""
    try:
        yield
    except NOT_OURS as error:
        raise UserError(
            f"{path}: is not as this lorarlhf writes it ({first_line(error)}); make it again, or move it away"
        ) from error


def read_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        UserError: the file is longer than `most_bytes`, cannot be read, or holds something else.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device never ends, and a pipe may never begin
            raise UserError(f"{path}: is not a file; fetch or make it again")
        if status.st_size > most_bytes:
            raise UserError(f"{path}: more than {most_bytes:,} bytes, which no such file has; fetch or make it again")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of 5,000 digits
        raise UserError(f"{path}: cannot be read ({first_line(error)}); fetch or make it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}; fetch or make it again")
    return value

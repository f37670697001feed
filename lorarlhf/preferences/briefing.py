"""What the labelling page says besides pairs: how to judge, and what to type once all are labelled."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from lorarlhf.errors import UserError

LARGEST_GUIDE = 256 * 1024  # bytes


@dataclass(frozen=True)
class Briefing:
    """`guide` is plain text or Markdown, `commands` are shown one a line."""

    guide: str | None = None
    commands: tuple[str, ...] = ()


def read_guide(path: Path) -> str:
    """A guideline for annotators, plain text or Markdown. Raises UserError if it is not a file of text."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "not a file")  # a device would never end
        with path.open("rb") as file:
            content = file.read(LARGEST_GUIDE + 1)
    except OSError as error:
        raise UserError(f"--guide {path}: cannot be read: {error.strerror}; name a file of text") from error
    if len(content) > LARGEST_GUIDE:
        raise UserError(f"--guide {path}: more than {LARGEST_GUIDE // 1024} KiB; nobody reads that beside a pair")
    try:
        guide = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"--guide {path}: not UTF-8; save it as plain text or Markdown") from None
    if not guide:
        raise UserError(f"--guide {path}: empty; write into it what makes a response better")
    return guide


def commands_after(pairs: Path, labels: Path) -> tuple[str, ...]:
    """From labels to a reward model. The rows go beside the labels, under a name that is free: none is overwritten."""
    names = chain(["prefs.jsonl"], (f"prefs-{number}.jsonl" for number in count(2)))
    rows = next(path for path in map(labels.with_name, names) if not path.exists())
    export = ["collect", "export", f"{labels}", "--pairs", f"{pairs}", "--out", f"{rows}"]
    reward = ["reward", "--recipe", "RECIPE", "--dataset", f"{rows}", "--output-dir", "runs/own"]
    return tuple(shlex.join(["lorarlhf", *words]) for words in (export, reward))

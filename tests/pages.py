"""The commands that a page of documentation tells people to type."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from lorarlhf.cli.main import main


def commands(page: str) -> list[str]:
    """Lines of the page's `sh` blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def own_commands(page: str) -> list[list[str]]:
    """Arguments of each `lorarlhf` command of a page, in its order."""
    return [shlex.split(line)[1:] for line in commands(page) if line.startswith("lorarlhf ")]


def opens_the_labelling_page(arguments: list[str]) -> bool:
    return arguments[0] == "collect" and arguments[1] not in ("export", "tasks")


def run(monkeypatch, arguments: list[str]) -> int:
    """The exit status of a `lorarlhf` command, in this process."""
    monkeypatch.setattr(sys, "argv", ["lorarlhf", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code

"""Calls that nobody means, until so many of them were refused: see `tests/bad_calls.py`."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from pathlib import Path
from random import Random

from bad_calls import KINDS, draw_call, nothing_trained, prepare, wrong_with

from fault_parts.tally import Tally, Task
from lorarlhf.files import remove_folder


def tasks(options: argparse.Namespace) -> dict[str, Task]:
    each, rest = divmod(options.inputs, len(KINDS))
    counts = {kind: each + (number < rest) for number, kind in enumerate(KINDS)}
    return {kind: partial(try_calls, kind, count, options.seed) for kind, count in counts.items() if count}


def try_calls(kind: str, count: int, seed: int, folder: Path) -> Tally:
    draw, tally = Random(f"{seed} {kind}"), Tally()
    with contextlib.chdir(folder), nothing_trained():
        while tally.more["refused"] < count:
            for path in folder.iterdir():
                remove_folder(path)
            prepare(folder)
            call = draw_call(draw, kind)
            if call.file:
                (folder / call.file).write_bytes(call.content)
            code, wrong = wrong_with(call, folder)
            tally.add(wrong and f"{call.arguments} {call.content[:200]!r}: {wrong}")
            tally.more["refused" if code == 2 else "good all the same"] += 1
    return tally

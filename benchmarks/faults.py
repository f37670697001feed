"""Faults on purpose: kills, faults at every write, damaged checkpoints, bad inputs, hostile requests and files.

    python benchmarks/faults.py --out benchmarks/results/faults-cpu.json
    python benchmarks/faults.py --parts inputs server --out faults.json

Writes one JSON object, a row a task: how often it was tried, how often what docs/reliability.md and docs/security.md
promise held, and a text of each time that it did not. A row is written as soon as it is known, and what stands in the
file already is not done again, so that the same line goes on after an interruption. No network is asked for. On one
core, all of it takes about an hour; `--kills`, `--every`, `--inputs` and `--probes` make it less.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = {  # with the options that decide what each tries
    "kills": ("kills", "seed"),
    "writes": ("every",),
    "damage": (),
    "inputs": ("inputs", "seed"),
    "server": ("probes", "seed"),
    "adapters": (),
}
TESTS = Path(__file__).parents[1] / "tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kills", type=int, default=200, help="kill -9, over all stages and algorithms")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try every Nth point at which a stage writes")
    parser.add_argument("--inputs", type=int, default=1000, help="bad inputs that are to be refused")
    parser.add_argument("--probes", type=int, default=200, help="requests to the pages")
    parser.add_argument("--seed", type=int, default=0, help="of moments, inputs and requests")
    parser.add_argument("--out", type=Path, required=True, help="the object's file")
    options = parser.parse_args()
    asked = {part: {name: getattr(options, name) for name in names} for part, names in PARTS.items()}
    rows = [row for row in _rows(options.out) if row["asked"] == asked[row["part"]]]
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        _alone(Path(work))
        for part in options.parts:
            for name, task in importlib.import_module(f"fault_parts.{part}").tasks(options).items():
                if any((row["part"], row["name"]) == (part, name) for row in rows):
                    continue
                row = {"part": part, "name": name, "asked": asked[part], **_tried(task, Path(work) / part / name)}
                rows.append(row)
                _write(options.out, rows)
                print(f"{part} {name}: {row['held']} of {row['tried']} held, {row['seconds']} s", file=sys.stderr)
    sys.exit(any(row["failures"] for row in rows))


def _tried(task: Callable[[Path], Any], folder: Path) -> dict[str, Any]:
    """What a task comes to; texts of failures name no folder of this machine."""
    folder = folder.with_name(folder.name.replace(" ", "-"))
    folder.mkdir(parents=True)
    start = time.perf_counter()
    from lorarlhf.errors import Stopped

    try:
        tally = task(folder)
    except Stopped as stopped:  # the signal came while a stage was on, and it is the campaign that it was for
        sys.exit(128 + stopped.number)
    return {
        "tried": tally.tried,
        "held": tally.tried - len(tally.failures),
        "failures": [text.replace(str(folder), "FOLDER")[:1000] for text in tally.failures],
        **dict(sorted(tally.more.items())),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _alone(work: Path) -> None:
    """Before anything heavy is imported: no network, one thread, and nothing of whoever runs this."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(work / "hub"),
        "XDG_STATE_HOME": str(work / "state"),
    }
    sys.path.insert(1, str(TESTS))
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from lorarlhf.files import write_file

    parts = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    totals = {
        part: {count: sum(row[count] for row in of_part) for count in ("tried", "held")}
        for part, of_part in parts.items()
        if of_part
    }
    write_file(path, json.dumps({"device": "cpu", "totals": totals, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Time and memory of reading a large preference file: `data inspect`, `data convert` and `data split`, as JSON.

    python benchmarks/stream_rows.py --rows 1000000

Rows are made up, with a prompt of its own each, and written to a temporary folder. Each command runs in a process of
its own; its peak memory is the largest resident set the kernel saw.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    "the",
    "river",
    "stone",
    "small",
    "bright",
    "slow",
    "house",
    "walks",
    "sings",
    "under",
    "never",
    "green",
    "and",
    "of",
)


def write_rows(path: Path, rows: int) -> None:
    draw = random.Random(0)

    def sentence(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "prompt": [{"role": "user", "content": f"{sentence(5, 30)} {number}?"}],
                "chosen": [{"role": "assistant", "content": f"{sentence(20, 80)}."}],
                "rejected": [{"role": "assistant", "content": f"{sentence(20, 80)}!"}],
            }
            file.write(json.dumps(row) + "\n")


def measured(*arguments: str) -> dict[str, float]:
    """Wall time and peak resident memory of one `lorarlhf data` command."""
    start = time.perf_counter()
    code = "import sys; from lorarlhf.cli.main import main; sys.argv[0] = 'lorarlhf'; main()"
    silent = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-c", code, "data", *arguments], os.environ, file_actions=[silent]
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"lorarlhf data {' '.join(arguments)} failed")
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes or KiB
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mib": round(usage.ru_maxrss * unit / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        source, few = Path(folder, "rows.jsonl"), Path(folder, "few.jsonl")
        write_rows(source, rows)
        write_rows(few, 1000)
        result = {
            "rows": rows,
            "file_mib": round(source.stat().st_size / 2**20, 1),
            "inspect": measured("inspect", str(source)),
            "convert": measured("convert", str(source), str(Path(folder, "converted.jsonl"))),
            "split": measured("split", str(source), str(Path(folder, "train.jsonl")), str(Path(folder, "test.jsonl"))),
            "inspect_of_1000_rows": measured("inspect", str(few)),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

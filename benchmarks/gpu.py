"""Every GPU figure of docs/performance.md, one run each, into benchmarks/results/DEVICE-DATE.json.

    LORARLHF_TRL_112=FOLDER python benchmarks/gpu.py [--only NAME ...]

FOLDER holds an unpacked TRL 1.12. A row that fails (out of memory under its cap, say) is kept with its error. The
32B row needs about 70 GB of GPU memory to make its weights, before the cap; the others need the size of the model in
16 bits.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
LONG = "--prompt 256 --response 256 --gradient-checkpointing"
SMALL = f"{LONG} --iterations 2 --optim paged_adamw_8bit"  # three in all, the first to warm up
VERSUS_TRL = "compare.py --rounds 2 -- --model qwen2.5-7b --batch 32"
ROWS = {
    "7b-1-epoch-versus-trl": f"{VERSUS_TRL} {LONG} --epochs 1",
    "7b-4-epochs-versus-trl": f"{VERSUS_TRL} {LONG} --epochs 4",
    "7b-8gib": f"ppo.py --model qwen2.5-7b --batch 8 --memory-cap 8 --quantize-head {SMALL}",
    "3b-6gib": f"ppo.py --model qwen2.5-3b --batch 16 --memory-cap 6 {SMALL}",
    "1.5b-4gib": f"ppo.py --model qwen2.5-1.5b --batch 16 --memory-cap 4 {SMALL}",
    "14b-16gib": f"ppo.py --model qwen2.5-14b --batch 8 --memory-cap 16 {SMALL}",
    "32b-24gib": f"ppo.py --model qwen2.5-32b --batch 8 --memory-cap 24 --quantize-head {SMALL}",
    "7b-limits": f"limits.py -- --model qwen2.5-7b --batch 32 {LONG} --epochs 1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU")
    device = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    path = HERE / "results" / f"{device}-{datetime.date.today()}.json"
    path.parent.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in args.only:
        results[name] = run(shlex.split(ROWS[name]))
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(results[name])[:300], flush=True)
    print(path)


def run(command: list[str]) -> Any:
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:] or ["no message"], "command": shlex.join(command)}
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()

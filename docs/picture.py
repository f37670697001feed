"""Make docs/demo.svg, the README's picture: `python docs/picture.py` runs the demo and keeps what it prints."""

import os
import tempfile
from pathlib import Path

from rich.console import Console

from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.stages.demo import run_demo

PICTURE = Path(__file__).resolve().with_name("demo.svg")

if __name__ == "__main__":
    quiet_libraries()
    console = Console(record=True, width=110)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_demo(Path("runs/demo"), seed=0, console=console)
    console.save_svg(str(PICTURE), title="make demo")

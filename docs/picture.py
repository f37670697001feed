"""Make docs/demo.svg, the README's picture: `python docs/picture.py` runs the demo and keeps what it prints."""

import os
import tempfile
from pathlib import Path

import rich
from rich.console import Console
from rich.text import Text

from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.stages.demo import run_demo

PICTURE = Path(__file__).resolve().with_name("demo.svg")
FROM = "3/5 evaluate"  # what comes before is rows of numbers

if __name__ == "__main__":
    quiet_libraries()
    rich.reconfigure(record=True, width=110)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_demo(Path("runs/demo"), seed=0)
    printed = rich.get_console().export_text(styles=True)
    console = Console(record=True, width=110)
    console.print(Text.from_ansi(printed[printed.index(FROM) :]))
    console.save_svg(str(PICTURE), title="make demo")

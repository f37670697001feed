"""`lorarlhf demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lorarlhf.cli.options import MOST_SEED, Set

FOLDER = Path("runs/demo")


def demo_folder(arguments: Sequence[str]) -> Path:
    """Where a demo called with these arguments writes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output-dir", type=Path, default=FOLDER)
    known, _ = parser.parse_known_args(arguments)
    folder: Path = known.output_dir
    return folder


def demo(
    output_dir: Annotated[Path, typer.Option(help="The run's folder.")] = FOLDER,
    seed: Annotated[int, typer.Option(help="Seed of training and sampling.", min=0, max=MOST_SEED)] = 0,
    set_: Set = None,
) -> None:
    """Run the whole loop on a tiny model that ships here: reward model, PPO, evaluation, export. Takes minutes."""
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.stages.demo import run_demo

    run_demo(output_dir, seed, set_ or [])

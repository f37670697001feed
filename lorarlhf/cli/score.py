"""`lorarlhf score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarlhf.cli.options import SOURCE, AllowOtherBase, RunFolder, Trust
from lorarlhf.recipe.load import parse_source
from lorarlhf.recipe.sections import DataConfig


def score(
    source: Annotated[str, typer.Argument(metavar="FILE", help=SOURCE, show_default=False)],
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Where to: a new .jsonl file.", show_default=False)],
    split: Annotated[str, typer.Option(help="Which split to read, of a source that has several.")] = (
        DataConfig().train_split
    ),
    allow_other_base: AllowOtherBase = False,
    trust: Trust = False,
) -> None:
    """Score prompts with responses, or both sides of pairs, with a run's reward model."""
    from rich.console import Console

    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.run import Run
    from lorarlhf.stages.score import score_file

    count = score_file(Run(run, trust), parse_source(source), split, out, Console(), allow_other_base)
    typer.echo(f"score: {count:,} rows in {out}; only scores of one reward model can be compared")

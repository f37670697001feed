"""`lorarlhf collect`: compare responses on a page of one's own or on a platform, and export labels as preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorarlhf.cli.options import MOST_SEED, finite
from lorarlhf.data.endings import LINES, check_ending
from lorarlhf.errors import UserError

collect_app = typer.Typer(no_args_is_help=True)


@collect_app.callback(invoke_without_command=True)
def collect(
    context: typer.Context,
    pairs: Annotated[Path | None, typer.Option(help="Pairs to compare.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="File of labels: new, or to go on with.", show_default=False)] = None,
    annotator: Annotated[str | None, typer.Option(help="Whose labels.", show_default="the page asks")] = None,
    guide: Annotated[
        Path | None, typer.Option(help="Text or Markdown that says how to judge: one key away.", show_default=False)
    ] = None,
    criteria: Annotated[
        str | None,
        typer.Option(help="Scales a pair, as helpful,honest; the first one decides.", show_default=False),
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Share of the pairs that every annotator gets.")
    ] = 0.0,
    run: Annotated[
        Path | None, typer.Option(help="Whose recipe trains the model of --active.", show_default=False)
    ] = None,
    active: Annotated[
        bool,
        typer.Option("--active", help="Retrain a reward model as labels come; what it is least sure of comes first."),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1.", show_default="any free one")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the sides, and of which pairs come back.")] = 0,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Whether to open the page.")] = True,
) -> None:
    """Compare responses on a local page; labels go to a file, one line each. `collect export` makes rows of it."""
    if context.invoked_subcommand is not None:
        return
    if pairs is None or out is None:
        missing = "--pairs" if pairs is None else "--out"
        raise UserError(f"{missing}: missing; run `lorarlhf collect --pairs pairs.jsonl --out labels.jsonl`")
    if active != (run is not None):
        raise UserError("--active: goes with --run RUN, whose recipe says how to train, and --run with --active")
    try:
        from lorarlhf.stages.collect import collect_labels
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs {error.name}; install it with: pip install 'lorarlhf[collect]'") from None
    from lorarlhf.run import Run

    learner = None if run is None else Run(run)
    collect_labels(pairs, out, annotator, guide, criteria, overlap, learner, port, seed, browser, _say)


def _say(line: str) -> None:
    typer.echo(f"collect: {line}")


@collect_app.command()
def export(
    labels: Annotated[
        Path,
        typer.Argument(help="File that `lorarlhf collect` wrote, or a platform's export (.json).", show_default=False),
    ],
    pairs: Annotated[Path, typer.Option(help="The pairs that were labelled.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New file, ending in .jsonl.", show_default=False)],
    majority: Annotated[bool, typer.Option("--majority", help="One row a pair, as most annotators chose.")] = False,
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Leave out pairs where a smaller share gave the most frequent answer."
        ),
    ] = 0.0,
    criterion: Annotated[
        str | None, typer.Option(help="Rows by this scale of `collect --criteria`.", show_default="the first one")
    ] = None,
) -> None:
    """Write labels as preference rows for `lorarlhf reward`. Ties, skips and both bad are left out and counted."""
    from lorarlhf.display import counted
    from lorarlhf.preferences.label_rows import preference_rows
    from lorarlhf.preferences.pairs import read_pairs
    from lorarlhf.preferences.platforms import labels_in

    check_ending(out, LINES)
    standing = labels_in(labels)
    exported = preference_rows(read_pairs(pairs), standing, majority, min_agreement, criterion)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in exported.left_out.items())
    left_out = f"; left out: {reasons}" if reasons else ""
    if not exported.rows:
        raise UserError(f"{labels}: none of {counted(len(standing), 'label')} makes a row{left_out}")
    _write_new(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in exported.rows))
    typer.echo(f"export: {counted(len(exported.rows), 'row')} in {out}{left_out}")


@collect_app.command()
def tasks(
    pairs: Annotated[Path, typer.Argument(help="Pairs to compare.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New file, ending in .json.", show_default=False)],
    platform: Annotated[
        Literal["label-studio", "argilla"], typer.Option("--format", help="Whose.", show_default=False)
    ],
) -> None:
    """Write pairs as tasks of Label Studio or records of Argilla; `collect export` and `data agreement` read theirs."""
    from lorarlhf.display import counted
    from lorarlhf.preferences.pairs import read_pairs
    from lorarlhf.preferences.platforms import EXPORTED, platform_tasks

    check_ending(out, (EXPORTED,))
    written = platform_tasks(read_pairs(pairs), platform)
    _write_new(out, json.dumps(written, ensure_ascii=False, indent=1) + "\n")
    typer.echo(f"tasks: {counted(len(written), 'pair')} in {out}")


def _write_new(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{error.filename}: exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; choose another place") from error

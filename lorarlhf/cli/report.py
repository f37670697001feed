"""`lorarlhf report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarlhf.data.endings import check_ending
from lorarlhf.errors import UserError


def report(
    run: Annotated[
        list[Path],
        typer.Option(metavar="RUN [RUN...]", help="A run's folder; several are compared.", show_default=False),
    ],
    # An option has one value; those that follow it, as of `--run runs/*`, are arguments.
    more: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="More of --run.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to: an .html file.", show_default="RUN/report.html of one run")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Serve the page instead, and follow runs that go on.")] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of --watch, on 127.0.0.1.", show_default="any free one")
    ] = 0,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Of --watch: whether to open the page.")] = True,
) -> None:
    """Put all that a run has left on one page: curves, samples before and after, warnings, memory, the recipe."""
    runs = [*run, *(more or [])]
    if watch:
        if out is not None:
            raise UserError("--out: says where a page is written, and --watch writes none; leave out one of them")
        _watch(runs, port, browser)
        return
    if out is None and len(runs) > 1:
        raise UserError("--out: missing; of several runs, say where the page is to go, as --out compared.html")
    from lorarlhf.stages.report import REPORT, write_report

    path = out or runs[0] / REPORT
    check_ending(path, (".html",))
    write_report(runs, path)
    typer.echo(f"report: written to {path}; any browser opens it")


def _watch(runs: list[Path], port: int, browser: bool) -> None:
    try:
        from lorarlhf.loopback import open_browser
    except ModuleNotFoundError as error:
        raise UserError(f"--watch needs {error.name}; install it with: pip install 'lorarlhf[collect]'") from None
    from lorarlhf.stages.report import watch_report

    def started(link: str) -> None:
        typer.echo(f"report: {link}\nreport: Ctrl-C ends")
        if browser:
            open_browser(link)

    watch_report(runs, port, started)

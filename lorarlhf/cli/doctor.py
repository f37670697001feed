"""`lorarlhf doctor`."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer

from lorarlhf.errors import UserError


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="For a bug report: without the user's name.")] = False,
) -> None:
    """Say what this machine can train, and what stands in the way. Exit 2 if nothing can be trained."""
    with contextlib.suppress(ImportError, OSError):  # of a broken installation, which the checks will say
        from lorarlhf.cli.quiet import quiet_libraries

        quiet_libraries()
    from lorarlhf.stages.doctor import can_train, examine, for_bug_report

    findings = examine()
    if json_:
        typer.echo(json.dumps(for_bug_report(findings), indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{finding.status:7}  {finding.name:{width}}  {finding.what}{remedy}")
    if not can_train(findings):
        stops = ", ".join(finding.name for finding in findings if finding.stops)
        raise UserError(f"nothing can be trained here; see to {stops}")

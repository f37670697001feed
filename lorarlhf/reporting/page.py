"""The page: one file that asks for nothing, whatever lies in a run's folder."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lorarlhf.errors import first_line
from lorarlhf.reporting.collect import RunReport, compare
from lorarlhf.reporting.figures import draw
from lorarlhf.reporting.plots import Plot, cell
from lorarlhf.version import __version__

PAGE = Path(__file__).parent / "page"


def render(reports: Sequence[RunReport], live: str | None = None) -> str:
    """The page of one run, or of several with a comparison before them.

    Args:
        live: of a page that is served: the state that it shows, and it asks its server for a later one.
    """
    page: str = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            reports=reports,
            comparison=compare(reports) if len(reports) > 1 else None,
            live=live,
            policy=policy(live is not None),
            style=Markup(_read("style.css")),
            script=Markup(_read("report.js")),
            version=__version__,
            written=datetime.now().astimezone().isoformat(" ", "seconds"),
        )
    )
    return page


def policy(live: bool) -> str:
    """The page's Content-Security-Policy: its own style and script, known by their hashes, and no network."""
    own = {name: _hash(_read(file)) for name, file in (("script-src", "report.js"), ("style-src", "style.css"))}
    asks = "; connect-src 'self'" if live else ""
    allowed = "; ".join(f"{name} 'sha256-{value}'" for name, value in own.items())
    return f"default-src 'none'; {allowed}{asks}; base-uri 'none'; form-action 'none'"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _figure, "cell": cell}
    return environment


def _figure(plot: Plot) -> Markup:
    """The only markup that goes in as it is: an XML library wrote it, and has escaped the texts in it.

    Of numbers that matplotlib cannot lay out there is a line that says so; the table beside it has them.
    """
    try:
        return Markup(draw(plot))
    except (ValueError, ArithmeticError) as error:
        return Markup('<p class="unfinished">cannot be drawn: {}</p>').format(first_line(error))


@cache
def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def in_bytes(page: str) -> bytes:
    """As UTF-8; half characters, which JSON may hold, become question marks."""
    return page.encode("utf-8", errors="replace")

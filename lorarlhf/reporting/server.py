"""The page of runs that go on, served: see `lorarlhf.loopback` for who may ask for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from lorarlhf.loopback import Guard
from lorarlhf.recipe.stages import STAGES
from lorarlhf.reporting.collect import FILES, RunReport
from lorarlhf.reporting.page import in_bytes, policy, render
from lorarlhf.run import RECIPE


def make_app(runs: Sequence[Path], read: Callable[[], list[RunReport]], token: str) -> Starlette:
    """The page and the state that it follows, under `/TOKEN/`.

    Args:
        runs: their folders.
        read: collects them anew.
    """

    async def page(request: Request) -> Response:
        state = state_of(runs)  # before reading: what is written meanwhile is another state, and is asked for again
        return HTMLResponse(in_bytes(render(read(), live=state)))

    async def state(request: Request) -> Response:
        return PlainTextResponse(state_of(runs))

    guard = Middleware(
        Guard, token=token, policy=f"{policy(live=True)}; frame-ancestors 'none'", command="lorarlhf report --watch"
    )
    return Starlette(routes=[Mount(f"/{token}", routes=[Route("/", page), Route("/state", state)])], middleware=[guard])


def state_of(runs: Sequence[Path]) -> str:
    """Another text whenever a file that the page is made of has changed."""
    digest = hashlib.sha256()
    for run in runs:
        for path in (run / RECIPE, *(run / stage / name for stage in STAGES for name in FILES)):
            try:
                found = path.stat()
            except OSError:
                continue
            digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]

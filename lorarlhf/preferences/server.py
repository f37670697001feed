"""The labelling page's server, for this machine alone.

Who may speak to it: whoever knows the token in the path, by a loopback name (else a page elsewhere could rebind its own
name to 127.0.0.1), and from no other origin. There is no cookie: nothing a browser would send on another page's behalf.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorarlhf.data.rows import Completion, Prompt
from lorarlhf.errors import UserError
from lorarlhf.preferences.labelling import AlreadyLabelled, Answer, Labelling, Task, annotator_name
from lorarlhf.preferences.labels import Label
from lorarlhf.recipe.sections import Section

T = TypeVar("T", bound=Section)

LARGEST_BODY = 64 * 1024  # bytes
PAGE = Path(__file__).parent / "page"
FILES = {
    "": ("index.html", "text/html"),
    "style.css": ("style.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Undoing(Section):
    """Whose last label to take back."""

    annotator: str | None = None


class Guard:
    """Refuse requests that are not from the page, and put the security headers on every response."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = self._problem(scope)
        app = self.app if problem is None else PlainTextResponse(problem, status_code=403)
        await app(scope, receive, send_with_headers)

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host.rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):  # any port: it may come through a tunnel
            return "This server answers to 127.0.0.1 and localhost only."
        if origin is not None and origin != f"http://{host}":
            return "This server takes no requests from other pages."
        if not secrets.compare_digest(scope["path"].removeprefix("/").split("/")[0].encode(), self.token):
            return "Open the link that `lorarlhf collect` printed when it last started."
        return None


def make_app(labelling: Labelling, token: str, annotator: str | None = None, suggestion: str = "") -> Starlette:
    """The page and its interface, all under `/TOKEN/`.

    `annotator` is whose labels these are; without it the page asks, and suggests a name. Handlers never wait between
    reading state and writing the file, so requests cannot overlap there: no lock is needed.
    """

    def who(asked_for: str | None) -> str:
        if annotator is not None:
            return annotator
        try:
            return annotator_name(asked_for or "")
        except ValueError as error:
            raise HTTPException(400, f"{error}") from None

    def current(name: str, undone: Label | None = None) -> JSONResponse:
        task = labelling.next_task(name)
        content = {
            "annotator": name,
            "asks": annotator is None,
            "task": task and _shown(task),
            "progress": asdict(labelling.progress(name)),
            "undone": undone and {"strength": undone.strength, "comment": undone.comment},
        }
        return JSONResponse(content)

    async def following(request: Request) -> Response:
        asked_for = request.query_params.get("annotator")
        if annotator is None and asked_for is None:
            return JSONResponse({"annotator": None, "suggestion": suggestion})
        return current(who(asked_for))

    async def label(request: Request) -> Response:
        answer = await _body(request, Answer)
        name = who(answer.annotator)
        try:
            labelling.record(name, answer)
        except AlreadyLabelled:
            raise HTTPException(409, "This pair was answered already, perhaps in another tab.") from None
        except OSError as error:
            raise HTTPException(507, f"Not saved: {error.strerror}.") from error
        return current(name)

    async def undo(request: Request) -> Response:
        name = who((await _body(request, Undoing)).annotator)
        try:
            undone = labelling.undo(name)
        except OSError as error:
            raise HTTPException(507, f"Not undone: {error.strerror}.") from error
        if undone is None:
            raise HTTPException(409, "There is nothing to undo.")
        return current(name, undone)

    routes = [
        Route("/api/next", following),
        Route("/api/label", label, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
        *(Route(f"/{name}", _file(*file)) for name, file in FILES.items()),
    ]
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[Middleware(Guard, token=token)])


def serve(
    labelling: Labelling, port: int, annotator: str | None, suggestion: str, started: Callable[[str], None]
) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C; port 0 takes a free one. `started` gets the link when it is open."""
    token = secrets.token_urlsafe(16)
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UserError(
            f"--port {port}: {os.strerror(error.errno or 0)}; choose another, or leave it out for any free one"
        ) from error
    # asyncio would do this, but not on a socket handed to it; without it a reply in two packets waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    app = make_app(labelling, token, annotator, suggestion)
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=1
    )
    started(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/")
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def open_browser(link: str) -> None:
    """In a thread: a browser in the terminal would hold up the server until it is closed."""
    threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()


async def _body(request: Request, kind: type[T]) -> T:
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise HTTPException(415, "Expected JSON.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, "Too long.")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise HTTPException(400, ": ".join([*map(str, first["loc"]), first["msg"]])) from None


def _shown(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "pair_id": task.pair.id,
        "prompt": _messages(task.pair.prompt),
        "left": _messages(task.left_response),
        "right": _messages(task.right_response),
    }


def _messages(text: Prompt | Completion) -> list[dict[str, Any]]:
    return [{"role": None, "content": text}] if isinstance(text, str) else list(text)


def _file(name: str, media_type: str) -> Callable[[Request], Response]:
    return lambda request: FileResponse(PAGE / name, media_type=media_type)

"""Pages served on this machine, for this machine alone.

Who may speak to such a server: whoever knows the token in the path, by a loopback name (else a page elsewhere could
rebind its own name to 127.0.0.1), and from no other origin. There is no cookie: nothing a browser would send on another
page's behalf.
"""

from __future__ import annotations

import atexit
import contextlib
import html
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorarlhf.errors import UserError

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


_OURS = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?")  # any port: it may come through a tunnel


class Guard:
    """Refuse requests that are not from the page, and put the security headers on every response.

    Args:
        token: what paths must begin with.
        policy: the Content-Security-Policy of what is served.
        command: who printed the link, for those who come without it.
    """

    def __init__(self, app: ASGIApp, token: str, policy: str, command: str) -> None:
        self.app = app
        self.token = token.encode()
        self.headers = {"content-security-policy": policy, **HEADERS}
        self.command = command

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        problem = self._problem(scope)
        app = self.app if problem is None else PlainTextResponse(problem, status_code=403)
        await app(scope, receive, send_with_headers)

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not _OURS.fullmatch(host):
            return "This server answers to 127.0.0.1 and localhost only."
        if origin is not None and origin != f"http://{host}":
            return "This server takes no requests from other pages."
        if not secrets.compare_digest(scope["path"].removeprefix("/").split("/")[0].encode(), self.token):
            return f"Open the link that `{self.command}` printed when it last started."
        return None


def serve(make_app: Callable[[str], ASGIApp], port: int, started: Callable[[str], None]) -> None:
    """Serve an app on 127.0.0.1 until Ctrl-C; port 0 takes a free one.

    Args:
        make_app: takes the token that the app's paths are to lie under.
        started: gets the link when it is open.

    Raises:
        UserError: the port cannot be had.
    """
    token = secrets.token_urlsafe(16)
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UserError(
            f"--port {port}: {os.strerror(error.errno or 0)}; choose another, or leave it out for any free one"
        ) from error
    # asyncio would do this, but not on a socket handed to it; without it a reply in two packets waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        make_app(token),
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    started(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/")
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def open_browser(link: str) -> None:
    """Open a link whose token others on this machine are not to see, as the arguments of a browser can be seen by all.

    It is given a file that only its owner can read, and that leads on. In a thread: a browser in the terminal would
    hold up the server until it is closed.
    """
    folder = Path(tempfile.mkdtemp(prefix="lorarlhf-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    page = folder / "open.html"
    page.write_text(
        f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(link)}">', encoding="utf-8"
    )
    threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()

"""What nobody's browser sends to a page of this machine, drawn at random."""

from __future__ import annotations

import json
from random import Random
from typing import Any

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW")
PATHS = (
    *("", "page.js", "style.css", "index.html", "api", "api/", "api/next", "api/label", "api/undo", "api/label/"),
    *("state", "recipe.yaml", "ppo/metrics.jsonl", "%2e%2e/recipe.yaml"),
    *("../token/", "..%2f..%2fetc%2fpasswd", "%00", "page.js%00", "api/next?annotator=", "api/next?annotator=%ff%00"),
    *("api/next?annotator=" + "a" * 5000, "//etc/passwd", "api//next", ";", "api/next#x", "%", "\u202e"),
)
TYPES = ("application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data; boundary=x")
VALUES = (
    *(None, True, -1, 0, 3, 10**30, 1e400, -0.0, "", "left", "both_bad", "\x00", "\u2028", "a" * 3000, [], {}, [[]]),
    *({"a": 1}, "p0", "p1", "ann", "<script>alert(1)</script>", "\u202e", "=1+1"),
)
BROKEN = (b"", b"{", b"[" * 20_000, b"\xff\xfe", b'{"annotator": "\\ud800"}', b"null", b"1" * 5000, b'{"a":1,"a":2}')
UNDO = b'{"annotator": "new"}'  # of one who has given no answer
STRANGERS = ("evil", "127.0.0.1:8000@evil", "localhost", "127.0.0.1.evil", "[::1]", "127.0.0.1:8000:80")


def draw_request(draw: Random, task: dict[str, Any]) -> dict[str, Any]:
    """Method, path, headers and content of a request.

    Args:
        task: one that the labelling page has asked for.
    """
    headers = {"content-type": draw.choice(TYPES)}
    if draw.random() < 0.1:
        headers["host"] = draw.choice(STRANGERS)
    if draw.random() < 0.05:
        headers["origin"] = draw.choice(["null", "http://evil", "http://127.0.0.1:8000"])
    return {
        "url": draw.choice(PATHS) if draw.random() < 0.5 else draw.choice(["api/label", "api/undo", "api/reopen"]),
        "method": draw.choice(METHODS) if draw.random() < 0.5 else "POST",
        "content": _body(draw, task),
        "headers": headers,
    }


def _body(draw: Random, task: dict[str, Any]) -> bytes:
    if draw.random() < 0.1:
        return UNDO
    if draw.random() < 0.2:
        return draw.choice(BROKEN)
    answer = {"task": task["id"], "pair_id": task["pair_id"], "choice": "left", "seconds": 1.0, "annotator": "ann"}
    for _ in range(draw.randrange(4)):
        answer[draw.choice([*answer, "strength", "comment", "more"])] = draw.choice(VALUES)
    return json.dumps(answer).encode()


def wrong_with_reply(reply: Any) -> str:
    """What is wrong with how a page answers a request; nothing, where it is in few words and with its headers."""
    if reply.status_code >= 500:
        return f"status {reply.status_code}"
    if reply.headers.get("x-content-type-options") != "nosniff":
        return "no security headers"
    if reply.status_code >= 400 and (len(reply.text) >= 500 or "root:" in reply.text):
        return f"says {reply.text[:100]!r}"
    return ""

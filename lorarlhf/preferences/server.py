"""The labelling page's server: see `lorarlhf.loopback` for who may speak to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from lorarlhf.data.rows import Completion, Prompt
from lorarlhf.loopback import Guard
from lorarlhf.preferences.briefing import Briefing
from lorarlhf.preferences.labelling import AlreadyLabelled, Answer, Dispute, Labelling, Task, annotator_name
from lorarlhf.preferences.labels import Label
from lorarlhf.preferences.markdown import markdown_nodes
from lorarlhf.recipe.sections import Section

T = TypeVar("T", bound=Section)

LARGEST_BODY = 64 * 1024  # bytes
PAGE = Path(__file__).parent / "page"
FILES = {
    "": ("index.html", "text/html"),
    "style.css": ("style.css", "text/css"),
    "difference.js": ("difference.js", "text/javascript"),
    "texts.js": ("texts.js", "text/javascript"),
    "disputed.js": ("disputed.js", "text/javascript"),
    "page.js": ("page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Undoing(Section):
    """Whose last label to take back."""

    annotator: str | None = None


class Reopening(Section):
    """Which pair to ask whom again."""

    pair_id: str
    annotator: str | None = None


def make_app(
    labelling: Labelling,
    token: str,
    annotator: str | None = None,
    suggestion: str = "",
    briefing: Briefing | None = None,
) -> Starlette:
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

    def current(name: str, saved: Label | None = None, undone: Label | None = None) -> JSONResponse:
        task = labelling.next_task(name)
        content = {
            "annotator": name,
            "asks": annotator is None,
            "task": task and _shown(task),
            "progress": asdict(labelling.progress(name)),
            "saved": saved and _given(saved),
            "undone": undone and _given(undone),
        }
        return JSONResponse(content)

    async def brief(request: Request) -> Response:
        said = briefing or Briefing()
        guide = _messages(said.guide)[0] if said.guide else None
        return JSONResponse({"guide": guide, "commands": said.commands, "criteria": labelling.criteria})

    async def following(request: Request) -> Response:
        asked_for = request.query_params.get("annotator")
        if annotator is None and asked_for is None:
            return JSONResponse({"annotator": None, "suggestion": suggestion})
        return current(who(asked_for))

    async def label(request: Request) -> Response:
        answer = await _body(request, Answer)
        name = who(answer.annotator)
        try:
            saved = labelling.record(name, answer)
        except AlreadyLabelled:
            raise HTTPException(409, "This pair was answered already, perhaps in another tab.") from None
        except ValueError as error:
            raise HTTPException(400, f"{error}") from None
        except OSError as error:
            raise HTTPException(507, f"Not saved: {error.strerror}.") from error
        return current(name, saved=saved)

    async def undo(request: Request) -> Response:
        name = who((await _body(request, Undoing)).annotator)
        try:
            undone = labelling.undo(name)
        except OSError as error:
            raise HTTPException(507, f"Not undone: {error.strerror}.") from error
        if undone is None:
            raise HTTPException(409, "There is nothing to undo.")
        return current(name, undone=undone)

    async def disputed(request: Request) -> Response:
        return JSONResponse(
            [_dispute(given) for given in labelling.disputed(who(request.query_params.get("annotator")))]
        )

    async def reopen(request: Request) -> Response:
        asked = await _body(request, Reopening)
        name = who(asked.annotator)
        try:
            return current(name, undone=labelling.reopen(name, asked.pair_id))
        except KeyError:
            raise HTTPException(409, "There is no such pair.") from None
        except OSError as error:
            raise HTTPException(507, f"Not opened again: {error.strerror}.") from error

    routes = [
        Route("/api/briefing", brief),
        Route("/api/next", following),
        Route("/api/label", label, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
        Route("/api/disputed", disputed),
        Route("/api/reopen", reopen, methods=["POST"]),
        *(Route(f"/{name}", _file(*file)) for name, file in FILES.items()),
    ]
    guard = Middleware(Guard, token=token, policy=POLICY, command="lorarlhf collect")
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[guard])


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


def _dispute(given: Dispute) -> dict[str, Any]:
    votes, left = given.votes, given.task.left
    counts = {"left": votes[left], "right": votes["b" if left == "a" else "a"], "tie": votes["tie"]}
    return _shown(given.task) | {"votes": counts}


def _given(label: Label) -> dict[str, Any]:
    """What a label says besides its choice, which would tell the page which response is which."""
    sides = {label.left: "left", ("b" if label.left == "a" else "a"): "right"}
    criteria = {name: sides.get(choice, choice) for name, choice in list(label.criteria.items())[1:]}
    return {"strength": label.strength, "comment": label.comment, "criteria": criteria}


def _messages(text: Prompt | Completion) -> list[dict[str, Any]]:
    turns = [{"role": None, "content": text}] if isinstance(text, str) else text
    return [{**turn, "markdown": markdown_nodes(str(turn["content"]))} for turn in turns]


def _file(name: str, media_type: str) -> Callable[[Request], Response]:
    return lambda request: FileResponse(PAGE / name, media_type=media_type)

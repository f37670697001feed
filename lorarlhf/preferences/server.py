"""The labelling page's server: see `lorarlhf.loopback` for who may speak to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
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

    `annotator` is whose labels these are; without it the page asks, and suggests a name.
    """
    interface = _Interface(labelling, annotator, suggestion, briefing or Briefing())
    routes = [
        Route("/api/briefing", interface.briefing),
        Route("/api/next", interface.next),
        Route("/api/label", interface.label, methods=["POST"]),
        Route("/api/undo", interface.undo, methods=["POST"]),
        Route("/api/disputed", interface.disputed),
        Route("/api/reopen", interface.reopen, methods=["POST"]),
        *(Route(f"/{name}", _file(*file)) for name, file in FILES.items()),
    ]
    guard = Middleware(Guard, token=token, policy=POLICY, command="lorarlhf collect")
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[guard])


@dataclass(frozen=True)
class _Interface:
    """What the page asks of the server, a method each.

    None of them waits between reading state and writing the file, so requests cannot overlap there: no lock is needed.
    """

    labelling: Labelling
    annotator: str | None
    suggestion: str
    said: Briefing

    async def briefing(self, request: Request) -> Response:
        guide = _messages(self.said.guide)[0] if self.said.guide else None
        return JSONResponse({"guide": guide, "commands": self.said.commands, "criteria": self.labelling.criteria})

    async def next(self, request: Request) -> Response:
        asked_for = request.query_params.get("annotator")
        if self.annotator is None and asked_for is None:
            return JSONResponse({"annotator": None, "suggestion": self.suggestion})
        return self._current(self._who(asked_for))

    async def label(self, request: Request) -> Response:
        answer = await _body(request, Answer)
        name = self._who(answer.annotator)
        try:
            saved = self.labelling.record(name, answer)
        except AlreadyLabelled:
            raise HTTPException(409, "This pair was answered already, perhaps in another tab.") from None
        except ValueError as error:
            raise HTTPException(400, f"{error}") from None
        except OSError as error:
            raise HTTPException(507, f"Not saved: {error.strerror}.") from error
        return self._current(name, saved=saved)

    async def undo(self, request: Request) -> Response:
        name = self._who((await _body(request, Undoing)).annotator)
        try:
            undone = self.labelling.undo(name)
        except OSError as error:
            raise HTTPException(507, f"Not undone: {error.strerror}.") from error
        if undone is None:
            raise HTTPException(409, "There is nothing to undo.")
        return self._current(name, undone=undone)

    async def disputed(self, request: Request) -> Response:
        name = self._who(request.query_params.get("annotator"))
        return JSONResponse([_dispute(given) for given in self.labelling.disputed(name)])

    async def reopen(self, request: Request) -> Response:
        asked = await _body(request, Reopening)
        name = self._who(asked.annotator)
        try:
            return self._current(name, undone=self.labelling.reopen(name, asked.pair_id))
        except KeyError:
            raise HTTPException(409, "There is no such pair.") from None
        except OSError as error:
            raise HTTPException(507, f"Not opened again: {error.strerror}.") from error

    def _who(self, asked_for: str | None) -> str:
        if self.annotator is not None:
            return self.annotator
        try:
            return annotator_name(asked_for or "")
        except ValueError as error:
            raise HTTPException(400, f"{error}") from None

    def _current(self, name: str, saved: Label | None = None, undone: Label | None = None) -> JSONResponse:
        """Where a person stands, and what their last request did."""
        task = self.labelling.next_task(name)
        content = {
            "annotator": name,
            "asks": self.annotator is None,
            "task": task and _shown(task),
            "progress": asdict(self.labelling.progress(name)),
            "saved": saved and _given(saved),
            "undone": undone and _given(undone),
        }
        return JSONResponse(content)


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

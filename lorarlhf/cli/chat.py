"""`lorarlhf chat`."""

from __future__ import annotations

import contextlib
import io
import re
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorarlhf.cli.options import MOST_SEED, AllowOtherBase, Checkpoint, Trust, finite
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Quantization

if TYPE_CHECKING:
    from lorarlhf.preferences.labelling import Task
    from lorarlhf.stages.chat import Chat, Said, Verdict

BEST_OF, MOST = 4, 64
COMMANDS = {
    "/regen": "answer the last message again",
    "/best N": f"answer it N times ({BEST_OF}; {MOST} at most), and keep the best by the run's reward model",
    "/compare": "answer it before and after training, side by side, and say which is better",
    "/system TEXT": "what the model is told beforehand; without TEXT, nothing",
    "/reset": "forget the conversation",
    "/help": "this list; Ctrl-C stops an answer, Ctrl-D leaves",
}
KEYS: dict[str, Verdict] = {"a": "left", "b": "right", "t": "tie", "n": "both_bad", "s": "skip"}
QUESTION = "better: a or b? (t tie, n neither, s skip) "
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed: terminals obey them
ENDINGS = {"limit": "cut at the limit; --response-length raises it", "interrupt": "stopped"}


def chat(
    run: Annotated[Path | None, typer.Option(help="A run: its latest policy answers.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a model, instead of a run.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Of --model: folder of an adapter on it.")] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Of --model, as it is computed with.", show_default="none")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, callback=finite, show_default="that of RUN's recipe; of a model, 1.0")
    ] = None,
    response_length: Annotated[
        int | None,
        typer.Option(help="Most tokens an answer.", min=1, show_default="that of RUN's recipe; of a model, 256"),
    ] = None,
    checkpoint: Checkpoint = "best",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the pairs and labels of /compare.", show_default="RUN/chat; of a model, chat"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MOST_SEED, show_default="another each time")] = None,
    allow_other_base: AllowOtherBase = False,
    trust: Trust = False,
) -> None:
    """Talk with a run's policy or a model; /compare collects preferences on the way. Reads lines from a pipe too."""
    if (run is None) == (model is None):
        raise UserError("chat: give either --run or --model")
    for option, given in (("--adapter", adapter), ("--quantization", quantization)):
        if run is not None and given is not None:
            raise UserError(f"{option}: a run has its own; it goes with --model")
    if run is None and checkpoint != "best":
        raise UserError("--checkpoint: says which policy of --run; name the folder of another with --adapter")
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.backbone.adapters import BASE
    from lorarlhf.recipe.sections import ModelConfig
    from lorarlhf.run import Run
    from lorarlhf.stages.chat import before_and_after, open_chat
    from lorarlhf.stages.sample import of_model

    if run is None:
        sources = [BASE, adapter] if adapter else None
        respondent = of_model(ModelConfig(name=str(model), quantization=quantization or "none"), sources)
    else:
        respondent = before_and_after(Run(run, trust), checkpoint)
    folder = out or (run or Path()) / "chat"
    seed = secrets.randbelow(2**31) if seed is None else seed
    session = open_chat(respondent, folder, temperature, response_length, seed, allow_other_base)
    with contextlib.closing(session):
        _talk(session, str(model) if run is None and not adapter else session.policy)


def _talk(session: Chat, name: str) -> None:
    """Line after line to the end of input. What goes wrong with one is said, and the next is read."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is not UTF-8 would else reach the tokenizer as half a text
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model says what an encoding other than UTF-8 may not have
    if interactive:
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  # lines can be edited and come back
        _note(f"{name}; /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    if not session.in_turns:
        _note("the model knows no turns: each line is completed as text, on its own")
    while True:
        try:
            line = _read("> " if interactive else "")
            if line is None:
                break
            if line.strip():
                _obey(session, line.strip(), interactive)
        except UserError as error:
            _note(f"Error: {error}")
        except KeyboardInterrupt:
            _note("\nstopped; Ctrl-D leaves")
    if interactive:
        typer.echo()


def _read(prompt: str) -> str | None:
    """The next line; None at the end of input."""
    try:
        return input(prompt)
    except EOFError:
        return None


def _obey(session: Chat, line: str, interactive: bool) -> None:
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if not command.startswith("/"):
        _end(session.answer(line, _show))
    elif command == "/regen":
        _end(session.regenerate(_show))
    elif command == "/best":
        best = session.best(_number(rest))
        _show(f"{best.text}\n")
        _note("scores " + ", ".join(f"{score:.3f}" for score in sorted(best.scores, reverse=True)))
    elif command == "/compare":
        _compare(session, interactive)
    elif command == "/system":
        session.set_system(rest)
    elif command == "/reset":
        session.reset()
    elif command == "/help":
        width = max(map(len, COMMANDS))
        _note("\n".join(f"{name:{width}}  {what}" for name, what in COMMANDS.items()))
    else:
        raise UserError(f"{command}: no such command; there are {', '.join(COMMANDS)}")


def _number(text: str) -> int:
    if not text:
        return BEST_OF
    if text not in map(str, range(2, MOST + 1)):
        raise UserError(f"/best {text}: how many answers to choose from? Give a number from 2 to {MOST}, as in /best 4")
    return int(text)


def _compare(session: Chat, interactive: bool) -> None:
    task = session.compare()
    _print_sides(task, interactive)
    began = time.monotonic()
    verdict = _verdict(interactive)
    if verdict is None:
        _note("no answer, so nothing is written down")
        return
    better = session.record(task, verdict, time.monotonic() - began)
    a, b = session.policies(task)
    _note(f"a was {a}, b was {b}; " + (f"going on from that of {better}" if better else "the answer before stays"))
    _note(f"written to {session.labels_path}")


def _print_sides(task: Task, interactive: bool) -> None:
    from lorarlhf.data.rows import completion_text

    a, b = completion_text(task.left_response), completion_text(task.right_response)
    if not interactive:
        _show(f"a: {a}\nb: {b}\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sides = Table("a", "b", expand=True)
    sides.add_row(Text(_shown(a)), Text(_shown(b)))
    Console().print(sides)


def _verdict(interactive: bool) -> Verdict | None:
    """What was said by one key, or through a pipe by a line; None if that was something else."""
    if not interactive:
        return KEYS.get((_read("") or "").strip().lower())
    typer.echo(QUESTION, nl=False)
    key = ""
    while key not in KEYS:
        try:
            key = typer.getchar().lower()
        except EOFError:  # Ctrl-D, as good as no answer
            return None
    typer.echo(key)
    return KEYS[key]


def _show(text: str) -> None:
    """Of the model's own words, all or a piece."""
    sys.stdout.write(_shown(text))
    sys.stdout.flush()


def _shown(text: str) -> str:
    """As a terminal may have it: a model's text could else move the cursor or set the title. Pipes get it as it is."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text


def _end(said: Said) -> None:
    typer.echo()
    if said.ended_by in ENDINGS:
        _note(ENDINGS[said.ended_by])


def _note(text: str) -> None:
    """What is no answer goes to the other stream: a pipe holds answers alone."""
    typer.echo(text, err=True)

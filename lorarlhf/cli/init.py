"""`lorarlhf init`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lorarlhf.errors import UserError
from lorarlhf.recipe.written import check_new_recipe, write_recipe

T = TypeVar("T")
GIB = 2**30


def init(
    path: Annotated[Path, typer.Argument(help="Where to: a file that ends in .yaml.")] = Path("mine.yaml"),
    card: Annotated[str | None, typer.Option(metavar="GB|cpu", help="Memory of the card, or cpu.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of the base model.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A file, a Hub id, or the name of a set that recipes ship for.")
    ] = None,
    taste: Annotated[
        str | None,
        typer.Option(metavar="comparisons|MODULE:FUNCTION", help="What says which response is the better one."),
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="HOURS", help="How long it may take.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing: take the default of what no option answers.")
    ] = False,
) -> None:
    """Ask five questions, and write a recipe that fits."""
    check_new_recipe(path, suggested="mine")
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.stages import interview
    from lorarlhf.stages.tailor import Answers, tailored

    if not yes and None in (card, model, data, taste, time):
        typer.echo("An empty answer takes what stands in brackets.")
    on = ask(card, yes, "Card: GB of its memory, or cpu", interview.suggested_card(), interview.read_card)
    base = ask(model, yes, "Model: folder or Hub id", interview.suggested_model(on), interview.read_model)
    chats = "with" if base.chats else "without"
    typer.echo(f"  {base.size} parameters, {chats} a chat template")
    sets = ", ".join(interview.shipped_sets())
    read = ask(
        data, yes, f"Data: a file, a Hub id, or {sets}", "ultrafeedback", lambda text: interview.read_data(text, base)
    )
    typer.echo(f"  {interview.recognised(read)}")
    function = ask(
        taste,
        yes,
        "Taste: comparisons, or a reward function as module:function",
        interview.COMPARISONS if read.compares else None,
        lambda text: interview.read_taste(text, read),
    )
    hours = ask(time, yes, "Time: hours", "1" if on.target == "cpu" else "8", interview.read_time)
    made = tailored(Answers(on, base, read, function, hours))
    for plan in made.plans:
        typer.echo(f"  {plan.stage}: {plan.peak.total / GIB:.1f} of {on.capacity / GIB:.1f} GiB")
    write_recipe(path, made.text, suggested="mine")
    typer.echo(f"Wrote {path}. Next:")
    typer.echo(f"  lorarlhf run --recipe {shlex.quote(str(path))}")
    typer.echo(f"  lorarlhf chat --run {shlex.quote(f'runs/{path.stem}')}")


def ask(given: str | None, yes: bool, question: str, default: str | None, read: Callable[[str], T]) -> T:
    """What an answer comes to; asked again until it can be read, if no option has given it.

    Raises:
        UserError: an option's answer is at fault, or there is none.
    """
    if given is not None or (yes and default is not None):
        return read(given if given is not None else str(default))
    while not yes:
        try:
            answer = typer.prompt(question, default=default).strip()
            if not sys.stdin.isatty():  # where nobody's typing shows it
                typer.echo(answer)
            return read(answer)
        except UserError as error:
            typer.echo(f"  {error}")
        except typer.Abort:
            if sys.stdin.isatty():  # Ctrl-C
                raise
            break
    raise UserError(f"no answer to {question!r}; `lorarlhf init --help` has an option for each")

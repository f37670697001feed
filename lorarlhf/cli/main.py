"""The `lorarlhf` command: groups of commands, and what a failure looks like."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from typing import Annotated

import typer

from lorarlhf.cli.chat import chat
from lorarlhf.cli.collect import collect_app
from lorarlhf.cli.data import data_app
from lorarlhf.cli.demo import demo, demo_folder
from lorarlhf.cli.doctor import doctor
from lorarlhf.cli.evaluate import evaluate
from lorarlhf.cli.export import export
from lorarlhf.cli.init import init
from lorarlhf.cli.plan import plan
from lorarlhf.cli.ppo import ppo
from lorarlhf.cli.recipes import recipes_app
from lorarlhf.cli.report import report
from lorarlhf.cli.reward import reward
from lorarlhf.cli.run import run
from lorarlhf.cli.sample import sample
from lorarlhf.cli.score import score
from lorarlhf.cli.sft import sft
from lorarlhf.errors import Stopped, UserError, first_line, is_disk_full, is_out_of_memory
from lorarlhf.recipe.stages import STAGES
from lorarlhf.version import __version__

INTERRUPTED = 130  # what Typer makes of Ctrl-C

app = typer.Typer(
    help="RLHF on one consumer GPU: reward model and PPO as LoRA adapters on one frozen 4-bit base model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(init)
app.command()(run)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(collect_app, name="collect")
app.command()(doctor)
app.command()(plan)
app.command()(sft)
app.command()(reward)
app.command()(ppo)
app.command()(evaluate)
app.command()(report)
app.command()(export)
app.command()(sample)
app.command()(score)
app.command()(chat)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lorarlhf {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks; may stand anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run a command. Exit 0 when done, 2 when the input is at fault, 1 when something else failed.

    Stopped by a signal, it exits as a shell says it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """
    verbose = "--verbose" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--verbose"]
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        _one_of_several()
        app(prog_name="lorarlhf")  # by whatever way it was called: completion goes by the name
    except UserError as error:
        _fail(str(error), 2, verbose)
    except Stopped as stopped:
        _fail(f"{stopped}{_how_to_go_on(sys.argv[1:])}", 128 + stopped.number, verbose)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        _fail(f"stopped{_how_to_go_on(sys.argv[1:], saved=False)}", 130, verbose)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            _fail(_in_one_line(error), 1, verbose)
        _fail(f"{str(error.filename)[:80]!r}: no such name can be ({error.strerror}); check the path", 2, verbose)
    except Exception as error:  # the last stop: anything else becomes one line and exit 1
        _fail(_in_one_line(error), 1, verbose)


def _how_to_go_on(arguments: list[str], saved: bool = True) -> str:
    """The line that goes on; nothing for a command that cannot.

    Args:
        saved: a checkpoint is known to be there. A stage that was stopped as it was loading has none.
    """
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command in STAGES:
        again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    elif command == "run":
        again = [argument for argument in arguments if argument != "--anew"]
    elif command == "demo" and (demo_folder(arguments) / "recipe.yaml").is_file():
        again = ["run", "--output-dir", str(demo_folder(arguments))]  # another `demo` would begin anew
    else:
        return ""
    where = "" if saved or command in ("run", "demo") else ", if there is a checkpoint"
    return f"; to go on{where}: {shlex.join(['lorarlhf', *again])}"


def _one_of_several() -> None:
    """Of several processes (`torchrun`, `accelerate launch`) the first alone says how it goes.

    Raises:
        UserError: the command is none that several processes can share.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    command = next((arg for arg in sys.argv[1:] if not arg.startswith("-")), "")
    if command and command not in STAGES:
        raise UserError(f"{command}: runs in one process; call `lorarlhf {command}` without a launcher")
    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # to the end of the process


def _fail(message: str, code: int, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    if code != 2 or os.environ.get("LOCAL_RANK", "0") == "0":  # a fault of the input is that of all on one machine
        typer.echo(f"Error: {message}" if rank == "0" else f"Error in process {rank}: {message}", err=True)
    sys.exit(code)


def _in_one_line(error: Exception) -> str:
    name, reason = type(error).__name__, first_line(error)
    hint = "--verbose shows where"
    if is_out_of_memory(error):
        hint = "lower ppo.micro_batch_tokens, ppo.batch_size or reward.per_device_train_batch_size"
    if is_disk_full(error):
        hint = "make room; what was saved before stays, and --resume goes on from there"
    return f"{name}: {reason} ({hint})" if reason != name else f"{name} ({hint})"

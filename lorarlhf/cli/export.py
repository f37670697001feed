"""`lorarlhf export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorarlhf.cli.options import AllowOtherBase, Checkpoint, RunFolder, Trust
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import MergeBase, Stage


def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option(help="A new folder, or that of an earlier export.", show_default=False)],
    stage: Annotated[Stage | None, typer.Option(help="What to export.", show_default="the last stage done")] = None,
    merge: Annotated[
        bool | None,
        typer.Option("--merge/--adapter-only", help="Whether to fold the adapter in.", show_default="as in the recipe"),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="Type of merged weights.", show_default="as in the recipe"),
    ] = None,
    base: Annotated[
        MergeBase | None,
        typer.Option(
            help="What to merge onto: the base as training multiplied it, or as it was published.",
            show_default="as in the recipe",
        ),
    ] = None,
    allow_other_base: AllowOtherBase = False,
    trust: Trust = False,
    checkpoint: Checkpoint = "best",
    anyway: Annotated[bool, typer.Option("--anyway", help="Even if training has improved nothing.")] = False,
    gguf: Annotated[
        Literal["f16", "q8_0", "q4_k_m"] | None,
        typer.Option(help="A file for llama.cpp and Ollama too, its weights kept so.", show_default="none"),
    ] = None,
    llama_cpp: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The clone of llama.cpp whose scripts write it.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(metavar="REPO", help="Upload to this Hub repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Keep a new Hub repository private.")] = False,
) -> None:
    """Write a stage's model with tokenizer and model card, ready for `from_pretrained` or the Hub."""
    if private and push_to_hub is None:
        raise UserError("--private: says how to make a Hub repository; give one with --push-to-hub")
    if llama_cpp is not None and gguf is None:
        raise UserError("--llama-cpp: says what makes a GGUF; give the kind with --gguf q8_0")
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.publishing.hub import check_can_push
    from lorarlhf.run import Run
    from lorarlhf.stages.export import check_improved, export_run

    folder = Run(run, trust)
    chosen = stage or folder.last_stage()
    check_improved(folder, chosen, checkpoint, anyway)
    if push_to_hub is not None:
        check_can_push(push_to_hub)
    compared = export_run(
        folder,
        to,
        chosen,
        merge,
        dtype,
        checkpoint,
        base=base,
        allow_other_base=allow_other_base,
        gguf=gguf,
        llama_cpp=llama_cpp,
    )
    _say(f"the {chosen} stage of {run} is in {to}")
    _say_what_is_there(to, compared)
    if push_to_hub is not None:
        _push(to, push_to_hub, private)


def _say_what_is_there(to: Path, compared: dict[str, Any]) -> None:
    """How near the folder is to the run's own model, and what to type for Ollama, as far as either can be said."""
    from lorarlhf.publishing.ollama import ollama_lines
    from lorarlhf.stages.fidelity import fidelity_line

    for line in [*([fidelity_line(compared)] if compared else []), *ollama_lines(to)]:
        _say(line)


def _push(folder: Path, repo: str, private: bool) -> None:
    """What will be sent is said before it is."""
    from lorarlhf.publishing.hub import push_to_hub, upload_lines

    for line in upload_lines(folder, repo, private):
        _say(line)
    _say(f"uploaded to {push_to_hub(folder, repo, private)}")


def _say(line: str) -> None:
    typer.echo(f"export: {line}")

"""`lorarlhf export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    from lorarlhf.publishing.hub import push_to_hub as push
    from lorarlhf.publishing.hub import upload_lines
    from lorarlhf.publishing.ollama import ollama_lines
    from lorarlhf.run import Run
    from lorarlhf.stages.export import check_improved, export_run
    from lorarlhf.stages.fidelity import fidelity_line

    folder = Run(run, trust)
    chosen = stage or folder.last_stage()
    check_improved(folder, chosen, checkpoint, anyway)
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
    typer.echo(f"export: the {chosen} stage of {run} is in {to}")
    if compared:
        typer.echo(f"export: {fidelity_line(compared)}")
    for line in ollama_lines(to):
        typer.echo(f"export: {line}")
    if push_to_hub is not None:
        for line in upload_lines(to, push_to_hub, private):
            typer.echo(f"export: {line}")
        typer.echo(f"export: uploaded to {push(to, push_to_hub, private)}")

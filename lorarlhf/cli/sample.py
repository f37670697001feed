"""`lorarlhf sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorarlhf.cli.options import AllowOtherBase, Checkpoint
from lorarlhf.data.endings import LINES, check_ending
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Quantization


def sample(
    prompts: Annotated[str, typer.Option(help="Hub id or file of prompts.")],
    out: Annotated[Path, typer.Option(help="Where to: a .jsonl file; an interrupted one is gone on with.")],
    run: Annotated[Path | None, typer.Option(help="A run: its latest policy responds.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a model, instead of a run.")] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Of --model, as it is computed with.", show_default="none")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Responses a prompt, of each policy.", min=1)] = 2,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, show_default="that of RUN's recipe; of a model, 1.0")
    ] = None,
    response_length: Annotated[
        int | None,
        typer.Option(help="Most tokens a response.", min=1, show_default="that of RUN's recipe; of a model, 256"),
    ] = None,
    adapters: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two adapter folders to compare blind; `base` is the model without one."),
    ] = None,
    pick: Annotated[Literal["all", "uncertain"], typer.Option(help="uncertain: closest calls first.")] = "all",
    reward: Annotated[Path | None, typer.Option(help="Reward adapter for --pick.", show_default="that of RUN")] = None,
    checkpoint: Checkpoint = "best",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    allow_other_base: AllowOtherBase = False,
) -> None:
    """Sample pairs of different responses, to be compared with `lorarlhf collect`."""
    if (run is None) == (model is None):
        raise UserError("sample: give either --run or --model")
    if run is not None and quantization is not None:
        raise UserError("--quantization: a run has its recipe's; it goes with --model")
    if checkpoint != "best" and (run is None or adapters is not None):
        raise UserError("--checkpoint: says which policy of --run; name the folders of other adapters with --adapters")
    if adapters is None and n < 2:
        raise UserError("sample: --n must be at least 2, or name two --adapters")
    check_ending(out, LINES)
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.recipe.sections import ModelConfig
    from lorarlhf.run import Run
    from lorarlhf.stages.sample import of_model, of_run, sample_pairs

    if run is not None:
        respondent = of_run(Run(run), adapters, checkpoint)
    else:
        respondent = of_model(ModelConfig(name=str(model), quantization=quantization or "none"), adapters)
    count = sample_pairs(
        respondent, prompts, out, n, temperature, response_length, pick, reward, seed, allow_other_base
    )
    typer.echo(f"sample: {count} pairs in {out}; label them with lorarlhf collect --pairs {out} --out labels.jsonl")

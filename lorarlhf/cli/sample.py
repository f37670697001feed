"""`lorarlhf sample`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorarlhf.cli.options import MOST_SEED, AllowOtherBase, Checkpoint, Trust, finite
from lorarlhf.data.endings import LINES, check_ending
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Quantization

if TYPE_CHECKING:
    from lorarlhf.stages.sample import Respondent, SamplingOptions

Pick = Literal["all", "uncertain"]


def sample(
    prompts: Annotated[str, typer.Option(help="Hub id or file of prompts.")],
    out: Annotated[Path, typer.Option(help="Where to: a .jsonl file; an interrupted one is gone on with.")],
    run: Annotated[Path | None, typer.Option(help="A run: its latest policy responds.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a model, instead of a run.")] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Of --model, as it is computed with.", show_default="none")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Responses a prompt, of each policy.", min=1, show_default="2")
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of", help="Write the best of so many by the reward model; of the policy PPO starts from.", min=2
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, callback=finite, show_default="that of RUN's recipe; of a model, 1.0")
    ] = None,
    response_length: Annotated[
        int | None,
        typer.Option(help="Most tokens a response.", min=1, show_default="that of RUN's recipe; of a model, 256"),
    ] = None,
    adapters: Annotated[
        str | None,
        typer.Option(
            metavar="A B",
            help="Two adapter folders to compare blind; `base` is the model without one. Of --best-of, one.",
        ),
    ] = None,
    # An option has a fixed number of values; the second of --adapters, which may be missing, is an argument.
    other: Annotated[str | None, typer.Argument(metavar="B", help="The second of --adapters.")] = None,
    pick: Annotated[Pick | None, typer.Option(help="uncertain: closest calls first.", show_default="all")] = None,
    reward: Annotated[
        Path | None, typer.Option(help="Reward adapter for --pick and --best-of.", show_default="that of RUN")
    ] = None,
    checkpoint: Checkpoint = "best",
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
    allow_other_base: AllowOtherBase = False,
    trust: Trust = False,
) -> None:
    """Sample pairs of different responses, to be compared with `lorarlhf collect`; or the best of several responses."""
    if (run is None) == (model is None):
        raise UserError("sample: give either --run or --model")
    if run is not None and quantization is not None:
        raise UserError("--quantization: a run has its recipe's; it goes with --model")
    sources = _sources(adapters, other, best_of is not None)
    if checkpoint != "best" and (run is None or sources or best_of):
        raise UserError("--checkpoint: says which policy of --run; name the folders of other adapters with --adapters")
    _check_number(n, best_of, pick, sources)
    check_ending(out, LINES)
    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.recipe.sections import ModelConfig
    from lorarlhf.run import Run
    from lorarlhf.stages.sample import SamplingOptions, of_model, of_run, of_start

    if run is None:
        respondent = of_model(ModelConfig(name=str(model), quantization=quantization or "none"), sources)
    elif best_of is None:
        respondent = of_run(Run(run, trust), sources, checkpoint)
    else:
        respondent = of_start(Run(run, trust), sources)
    options = SamplingOptions(temperature, response_length, reward, seed, allow_other_base)
    if best_of is None:
        typer.echo(_write_pairs(respondent, prompts, out, n or 2, pick or "all", options))
    else:
        typer.echo(_write_best(respondent, prompts, out, best_of, options))


def _write_pairs(respondent: Respondent, prompts: str, out: Path, n: int, pick: Pick, options: SamplingOptions) -> str:
    """What has come of it, and what to type next."""
    from lorarlhf.stages.sample import sample_pairs

    count, pairs = sample_pairs(respondent, prompts, out, n, pick, options), shlex.quote(str(out))
    return f"sample: {count} pairs in {out}; label them with lorarlhf collect --pairs {pairs} --out labels.jsonl"


def _write_best(respondent: Respondent, prompts: str, out: Path, n: int, options: SamplingOptions) -> str:
    """What has come of it: how much better the best is than the first, and how far from the policy it can be."""
    from lorarlhf.stages.sample import sample_best

    outcome = sample_best(respondent, prompts, out, n, options)
    return (
        f"sample: the best of {n} responses to {outcome.prompts:,} prompts in {out}: mean score "
        f"{outcome.best:.3f}, of the first {outcome.first:.3f}; KL at most {outcome.kl:.3f} nats a response"
    )


def _check_number(n: int | None, best_of: int | None, pick: Pick | None, sources: list[str] | None) -> None:
    """Raise UserError if one option says how many responses there are, and another something else."""
    if best_of is not None and (n, pick) != (None, None):
        raise UserError("--best-of: says how many responses there are and which is kept; leave out --n and --pick")
    if best_of is None and sources is None and (n or 2) < 2:
        raise UserError("sample: --n must be at least 2, or name two --adapters")


def _sources(adapters: str | None, other: str | None, best_of: bool) -> list[str] | None:
    sources = [source for source in (adapters, other) if source is not None]
    wanted = 1 if best_of else 2
    if sources and (adapters is None or len(sources) != wanted):
        raise UserError(
            f"--adapters: takes {'one, with --best-of' if best_of else 'two'}; there is {' '.join(sources)}"
        )
    return sources or None

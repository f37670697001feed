"""`lorarlhf sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorarlhf.data.endings import LINES, check_ending
from lorarlhf.errors import UserError


def sample(
    prompts: Annotated[str, typer.Option(help="Hub id or file of prompts.")],
    out: Annotated[Path, typer.Option(help="Where to: a .jsonl file; an interrupted one is gone on with.")],
    run: Annotated[Path | None, typer.Option(help="A run: its latest policy responds.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a model, instead of a run.")] = None,
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
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Sample pairs of different responses, to be compared with `lorarlhf collect`."""
    if (run is None) == (model is None):
        raise UserError("sample: give either --run or --model")
    if adapters is None and n < 2:
        raise UserError("sample: --n must be at least 2, or name two --adapters")
    check_ending(out, LINES)
    from rich.progress import Progress

    from lorarlhf.cli.quiet import quiet_libraries

    quiet_libraries()
    from lorarlhf.backbone.adapters import BASE
    from lorarlhf.backbone.load import load_backbone
    from lorarlhf.data.tokenized import prompt_examples
    from lorarlhf.preferences.sampling import Sampler, finished_rows, write_pairs
    from lorarlhf.recipe.sections import DataConfig, ModelConfig
    from lorarlhf.run import Run

    recipe = Run(run).read_recipe() if run else None
    sources = list(adapters) if adapters else [_latest_adapter(run)]
    reward_adapter = _reward_adapter(run, reward) if pick == "uncertain" else None
    response_length = response_length or (recipe.ppo.response_length if recipe else 256)
    temperature = temperature or (recipe.ppo.temperature if recipe else 1.0)
    config = recipe.model if recipe else ModelConfig(name=str(model))
    options = {
        "model": config.name,
        "adapters": " / ".join(sources),
        "prompts": prompts,
        "n": n,
        "temperature": temperature,
        "response-length": response_length,
        "seed": seed,
        "pick": pick,
        "reward": reward_adapter and str(reward_adapter),
    }
    finished_rows(out, options)  # refuses before anything is loaded
    data = DataConfig(prompts=prompts, test_size=0.0) if recipe is None else recipe.data
    data = data.model_copy(update={"prompts": prompts, "prompts_test": None, "test_size": 0.0})
    backbone = load_backbone(config, data)
    examples = prompt_examples(data, backbone.tokenizer, "train")

    roles = [BASE if source == BASE else role for role, source in zip(("policy", "candidate"), sources, strict=False)]
    for role, source in zip(roles, sources, strict=True):
        if role != BASE:
            backbone.load_role(role, Path(source))
    if reward_adapter:
        backbone.load_role("reward", reward_adapter)
    sampler = Sampler(backbone, roles, sources, n, response_length, temperature, seed, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        count = write_pairs(sampler, examples, out, pick == "uncertain", progress)
    if not count:
        raise UserError(
            f"sample: no prompt of {prompts} got two different responses that are not empty; raise --n, --temperature "
            "or --response-length, and see in `lorarlhf evaluate` what the model responds"
        )
    typer.echo(f"sample: {count} pairs in {out}; label them with lorarlhf collect --pairs {out} --out labels.jsonl")


def _latest_adapter(run: Path | None) -> str:
    for stage in ("ppo", "sft"):
        if run and (run / stage / "adapter_config.json").is_file():
            return str(run / stage)
    return "base"


def _reward_adapter(run: Path | None, reward: Path | None) -> Path:
    folder = reward or (run / "reward" if run else None)
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise UserError(f"--pick uncertain: no reward adapter in {folder or 'a model'}; give one with --reward")
    return folder

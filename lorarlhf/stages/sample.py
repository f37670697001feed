"""Sample from the policy of a run, a model, or adapters: pairs to compare, or the best of several responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from lorarlhf.backbone.adapter_files import read_adapter
from lorarlhf.backbone.adapters import BASE
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import load_prompt_rows
from lorarlhf.data.rows import NO_COLUMNS
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.data.tokenized import read_by_model
from lorarlhf.errors import UserError
from lorarlhf.files import hash_file
from lorarlhf.preferences.best_of import BestOf, write_best
from lorarlhf.preferences.sampling import ADAPTER_WEIGHTS, Sampler, finished_rows, write_pairs
from lorarlhf.recipe.sections import DataConfig, ModelConfig, Recipe
from lorarlhf.recipe.stages import POLICY_STAGES
from lorarlhf.run import BEST, WEIGHTS, Run
from lorarlhf.stages.evaluate import BASE_MODEL, reference_of

LENGTH, TEMPERATURE = 256, 1.0  # of a model, which has no recipe


@dataclass(frozen=True)
class Respondent:
    """Who responds: a base model, and the adapters on it that take part.

    Attributes:
        sources: one or two adapter folders, or `base` for the model without one.
        recipe: that of the run it comes from, if it comes from one.
        reward: folder of the run's reward adapter, if there is one.
    """

    model: ModelConfig
    sources: Sequence[str]
    recipe: Recipe | None = None
    reward: Path | None = None


def of_run(run: Run, adapters: Sequence[str] | None = None, checkpoint: str | int = BEST) -> Respondent:
    """The latest policy of a run, or other adapters on its model.

    Args:
        checkpoint: of the latest policy, see `Run.adapter`.

    Raises:
        UserError: it is no run, or has no such checkpoint.
    """
    stage = next((stage for stage in POLICY_STAGES if run.has_adapter(stage)), None)
    recipe = run.read_recipe(stage=stage, runs_functions=False)
    if stage is None and checkpoint != BEST:
        raise UserError(
            f"--checkpoint {checkpoint}: no policy of {run.path} has finished; run `lorarlhf ppo --output-dir "
            f"{run.path}` first"
        )
    latest = str(run.adapter(stage, checkpoint)) if stage else BASE
    reward = run.stage("reward") if run.has_adapter("reward") else None
    return Respondent(recipe.model, adapters or [latest], recipe, reward)


def of_start(run: Run, adapters: Sequence[str] | None = None) -> Respondent:
    """The policy that PPO starts from, or started from: that of sft, or the base; or another adapter on its model.

    Raises:
        UserError: it is no run.
    """
    recipe = run.read_recipe(stage="ppo", runs_functions=False)
    start = reference_of(run, "ppo")
    reward = run.stage("reward") if run.has_adapter("reward") else None
    return Respondent(
        recipe.model, adapters or [BASE if start == BASE_MODEL else str(run.stage(start))], recipe, reward
    )


def of_model(model: ModelConfig, adapters: Sequence[str] | None = None) -> Respondent:
    """A model as it is, or with adapters."""
    return Respondent(model, adapters or [BASE])


@dataclass(frozen=True)
class SamplingOptions:
    """How responses are sampled, and by what they are scored.

    Attributes:
        temperature, response_length: None takes the recipe's; of a model 1.0 and 256.
        reward: adapter that scores, where something does; None takes the run's.
        allow_other_base: take adapters that say they were trained on another model.
    """

    temperature: float | None = None
    response_length: int | None = None
    reward: Path | None = None
    seed: int = 0
    allow_other_base: bool = False


def sample_pairs(
    respondent: Respondent,
    prompts: str,
    out: Path,
    n: int,
    pick: Literal["all", "uncertain"],
    options: SamplingOptions,
) -> int:
    """Write pairs of different responses into `out`, or go on with it where it was cut off; return how many it holds.

    Args:
        prompts: Hub id or file.
        n: responses a prompt, of each adapter.
        pick: `uncertain` puts the pairs first whose scores are nearest.

    Raises:
        UserError: `out` holds something else, there is no reward adapter to pick by, or no pair came out.
    """
    scored_by = _scored_by(respondent, options.reward, "--pick uncertain") if pick == "uncertain" else None
    made_with = {"n": n, "pick": pick, "reward": scored_by and str(scored_by)}
    sampler, examples = _sampler(respondent, prompts, out, n, options, scored_by, made_with)
    with Progress() as progress:
        count = write_pairs(sampler, examples, out, pick == "uncertain", progress)
    if not count:
        raise UserError(
            f"sample: no prompt of {prompts} got two different responses that are not empty; raise --n, --temperature "
            "or --response-length, and see in `lorarlhf evaluate` what the model responds"
        )
    return count


def sample_best(respondent: Respondent, prompts: str, out: Path, n: int, options: SamplingOptions) -> BestOf:
    """Write the best of `n` responses to each prompt into `out`, or go on with it where it was cut off.

    Args:
        respondent: with one source.

    Others as of `sample_pairs`, whose UserErrors it raises.
    """
    scored_by = _scored_by(respondent, options.reward, "--best-of")
    made_with = {"best-of": n, "reward": str(scored_by)}
    sampler, examples = _sampler(respondent, prompts, out, n, options, scored_by, made_with)
    with Progress() as progress:
        return write_best(sampler, examples, out, progress)


def _sampler(
    respondent: Respondent,
    prompts: str,
    out: Path,
    n: int,
    options: SamplingOptions,
    scored_by: Path | None,
    made_with: Mapping[str, Any],
) -> tuple[Sampler, list[PromptExample]]:
    """A backbone with all that takes part, and the prompts as it reads them; `out` is seen to first.

    Args:
        made_with: what else `out` must have been told when it was begun.
    """
    recipe = respondent.recipe
    response_length = options.response_length or (recipe.ppo.response_length if recipe else LENGTH)
    temperature = options.temperature or (recipe.ppo.temperature if recipe else TEMPERATURE)
    folders = [*(Path(source) for source in respondent.sources if source != BASE), *([scored_by] if scored_by else [])]
    hashes = [hash_file(folder / WEIGHTS)[:12] for folder in folders if (folder / WEIGHTS).is_file()]
    made_with = {
        **made_with,
        "model": respondent.model.name,
        "quantization": respondent.model.quantization,
        "adapters": " / ".join(respondent.sources),
        "prompts": prompts,
        "temperature": temperature,
        "response-length": response_length,
        "seed": options.seed,
        **({ADAPTER_WEIGHTS: " / ".join(hashes)} if hashes else {}),  # a run may have been trained again since
    }
    finished_rows(out, made_with)  # refuses before anything is loaded
    data = (recipe.data if recipe else DataConfig()).model_copy(
        update={"prompts": prompts, "prompts_test": None, "test_size": 0.0, "max_examples": None}
    )
    rows = load_prompt_rows(data, "train", NO_COLUMNS)  # says so before anything is loaded
    backbone, roles = load_respondent(respondent, data, scored_by, options.allow_other_base)
    examples = read_by_model(rows, data, backbone.tokenizer, "train")
    out.parent.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(backbone, roles, respondent.sources, n, response_length, temperature, options.seed, made_with)
    return sampler, examples


def load_respondent(
    respondent: Respondent, data: DataConfig, scored_by: Path | None, allow_other_base: bool
) -> tuple[SharedBackbone, list[str]]:
    """A backbone with an adapter for each source, and the reward role if there is a folder of it.

    Returns:
        the backbone, and the role of each source.
    """
    adapters = [Path(source) for source in respondent.sources if source != BASE]
    for folder in [*adapters, *([scored_by] if scored_by else [])]:
        read_adapter(folder)  # what is none is refused before the base model is loaded
    backbone = load_backbone(respondent.model, data)
    names = ("policy", "candidate")
    roles = [BASE if source == BASE else name for name, source in zip(names, respondent.sources, strict=False)]
    for role, source in zip(roles, respondent.sources, strict=True):
        if role != BASE:
            backbone.load_role(role, Path(source), allow_other_base=allow_other_base)
    if scored_by:
        backbone.load_role("reward", scored_by, allow_other_base=allow_other_base)
    return backbone, roles


def _scored_by(respondent: Respondent, reward: Path | None, option: str) -> Path:
    folder = reward or respondent.reward
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise UserError(f"{option}: no reward adapter in {folder or 'it'}; give one with --reward")
    return folder

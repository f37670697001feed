"""Export a stage of a run as a folder that stands alone, and see that what leaves is what was trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lorarlhf.backbone.base import check_base, identify_base
from lorarlhf.backbone.load import load_model_config
from lorarlhf.data.examples import first_prompt
from lorarlhf.data.tokenizer import wraps_text
from lorarlhf.errors import UserError
from lorarlhf.json_file import read_object, telling_of
from lorarlhf.memory import free_unused_memory
from lorarlhf.publishing.card import model_card, published, results_table
from lorarlhf.publishing.folder import write_marker, written_beside
from lorarlhf.publishing.gguf import Converter, GGUFType, find_converter
from lorarlhf.publishing.merge import check_mergeable, export_dtype, stage_tokenizer, write_adapter, write_merged
from lorarlhf.publishing.ollama import MODELFILE, modelfile
from lorarlhf.recipe.sections import MergeBase, ModelConfig, Recipe, Stage
from lorarlhf.recipe.shipped import resolve_path
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import BEST, SUMMARY, Run, is_current
from lorarlhf.stages.evaluate import report_lines
from lorarlhf.stages.fidelity import fidelity_line, trained_model
from lorarlhf.stages.origins import made_from

logger = logging.getLogger(__name__)
BASE_GGUF = "./base.gguf"  # beside an adapter's, where the user puts the base model
DType = Literal["auto", "bfloat16", "float16", "float32"]


def export(
    run: Run | Path | str,
    to: Path | str,
    stage: Stage | None = None,
    merge: bool | None = None,
    dtype: DType | None = None,
    checkpoint: str | int = BEST,
    anyway: bool = False,
    base: MergeBase | None = None,
    allow_other_base: bool = False,
    gguf: GGUFType | None = None,
    llama_cpp: Path | str | None = None,
) -> Path:
    """Write a stage's model with tokenizer and model card into the folder `to`, whole or not at all; return `to`.

    A merged policy has a Modelfile for Ollama as well.

    A merged model is loaded back and compared with the run's own: the figures go into its card, into its
    `lorarlhf_export.json` and, as `export`, into the stage's `summary.json`.

    Args:
        run: a run, or its folder.
        to: a new folder, or that of an earlier export.
        stage: None takes the last one that has finished.
        merge: fold the adapter into the base model's weights, or leave it a plain PEFT adapter.
        dtype: of merged weights.
        checkpoint: another adapter than the one that was kept, see `Run.adapter`.
        anyway: also a policy that is still the one from before training.
        base: what the adapter is merged onto: `dequantized` is the base as training multiplied it, `original` as it
            was published. It, `merge` and `dtype` are as in the recipe (`export`) if None.
        allow_other_base: take an adapter that says it was trained on another base model than the recipe's.
        gguf: the policy, or its adapter alone, as a file for llama.cpp and Ollama too.
        llama_cpp: the clone of llama.cpp whose scripts write that.

    Raises:
        UserError: there is no such run, stage or checkpoint, `to` holds anything else, or llama.cpp cannot convert it.
    """
    run, to = Run(run), Path(to)
    stage = stage or run.last_stage()
    check_improved(run, stage, checkpoint, anyway)
    export_run(
        run,
        to,
        stage,
        merge,
        dtype,
        checkpoint,
        base=base,
        allow_other_base=allow_other_base,
        gguf=gguf,
        llama_cpp=llama_cpp,
    )
    return to


def check_improved(run: Run, stage: Stage, checkpoint: str | int, anyway: bool) -> None:
    """Raise UserError if what is to leave is the policy that training began with, unless told `anyway`."""
    if checkpoint == BEST and not anyway and run.read_summary(stage).get("improved") is False:
        raise UserError(
            f"{run.stage(stage)}: the policy kept is the one from before training, as none was better on the held-out "
            f"prompts; for it all the same, `lorarlhf export --run {run.path} --to FOLDER --anyway`, for another "
            "--checkpoint last"
        )


def export_run(
    run: Run,
    to: Path,
    stage: Stage,
    merge: bool | None = None,
    dtype: DType | None = None,
    checkpoint: str | int = BEST,
    base: MergeBase | None = None,
    allow_other_base: bool = False,
    gguf: GGUFType | None = None,
    llama_cpp: Path | str | None = None,
) -> dict[str, Any]:
    """The same, improved or not; returns the figures of the comparison, nothing if there was none."""
    read = run.read_recipe(stage=stage, runs_functions=False)
    recipe = _with_options(read, {"merge": merge, "dtype": dtype, "base": base})
    finished, adapter = run.adapter(stage), run.adapter(stage, checkpoint)
    model_config = load_model_config(recipe.model)
    if not allow_other_base:
        check_base(adapter, identify_base(recipe.model, getattr(model_config, "_commit_hash", None)))
    if recipe.export.merge:
        check_mergeable(recipe.model, stage)
    converter = _find_converter(recipe, stage, model_config, gguf, llama_cpp) if gguf else None
    summary, evaluation = _figures(run, stage, adapter)
    with written_beside(to) as folder:
        tokenizer = stage_tokenizer(recipe, stage, finished)
        compared = {}
        if recipe.export.merge:
            compared = _write_compared(recipe, stage, adapter, tokenizer, folder)
        else:
            write_adapter(recipe, adapter, tokenizer, folder)
        if not STAGES[stage].scores:
            _write_for_ollama(recipe, stage, tokenizer, model_config, converter, folder)
        for_ollama = (folder / MODELFILE).is_file()
        card = _card(run, recipe, stage, adapter, tokenizer, compared, for_ollama, summary, evaluation)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_marker(folder, {"stage": stage, "compared": compared or None})
    if compared and adapter == finished:
        run.write_summary(stage, {**run.read_summary(stage), "export": compared})
    return compared


def _find_converter(
    recipe: Recipe, stage: Stage, config: PreTrainedConfig, gguf: GGUFType, llama_cpp: Path | str | None
) -> Converter:
    """What writes the GGUF, seen to be there before a model is loaded."""
    if STAGES[stage].scores:
        raise UserError(
            "--gguf: llama.cpp has no form for a reward model's score; export the policy, --stage ppo or sft"
        )
    if llama_cpp is None:
        raise UserError(f"--gguf {gguf}: a clone of llama.cpp makes it; give its folder with --llama-cpp")
    architecture = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])
    return find_converter(Path(llama_cpp), gguf, architecture, adapter=not recipe.export.merge)


def _write_for_ollama(
    recipe: Recipe,
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    converter: Converter | None,
    folder: Path,
) -> None:
    """The GGUF if one is asked for, and the Modelfile; none for an adapter of safetensors: Ollama takes none."""
    weights, above = ".", None
    if converter is not None and recipe.export.merge:
        weights = f"./model-{converter.kind}.gguf"
        converter.write(folder, folder / weights)
    elif converter is not None:
        weights, above = BASE_GGUF, f"./adapter-{converter.kind}.gguf"
        converter.write_adapter(folder, folder / above, resolve_path(recipe.model.name))
    elif not recipe.export.merge:
        return
    text, notes = modelfile(recipe, tokenizer, config, weights, above, _reads_text(recipe, stage, tokenizer))
    (folder / MODELFILE).write_text(text, encoding="utf-8")
    for note in notes:
        logger.warning("%s: %s", MODELFILE, note)


def _with_options(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    stated = {key: value for key, value in options.items() if value is not None}
    return recipe.model_copy(update={"export": recipe.export.model_copy(update=stated)})


def _write_compared(
    recipe: Recipe, stage: Stage, adapter: Path, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, Any]:
    """One model in memory at a time: the run's, the merged one, the merged one as it is loaded."""
    trained = trained_model(recipe, stage, adapter, allow_other_base=True)  # it has been checked
    free_unused_memory()
    write_merged(recipe, stage, adapter, tokenizer, folder)
    free_unused_memory()
    if trained is None:
        return {}
    dtype = str(export_dtype(recipe, stage)).removeprefix("torch.")
    exported = ModelConfig(name=str(folder), quantization="none", trust_remote_code=recipe.model.trust_remote_code)
    compared = trained.compare(exported)
    return {"base": recipe.export.base, "dtype": dtype, **compared}


def _figures(run: Run, stage: Stage, adapter: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Summary and evaluation of what the stage kept, for the card; of another checkpoint only which it is.

    Raises:
        UserError: they cannot be put into words: they are from elsewhere, or of another version.
    """
    kept, path = adapter == run.stage(stage), adapter / "evaluation.json"
    summary = run.read_summary(stage) if kept else {"checkpoint": adapter.parent.name}
    told = {key: value for key, value in summary.items() if key != "export"}
    with telling_of(run.stage(stage) / SUMMARY):
        results_table(told)
    measured = read_object(path) if path.is_file() else {}
    with telling_of(path):
        return told, report_lines(published(measured)) if measured and is_current(measured, adapter) else []


def _card(
    run: Run,
    recipe: Recipe,
    stage: Stage,
    adapter: Path,
    tokenizer: PreTrainedTokenizerBase,
    compared: dict[str, Any],
    for_ollama: bool,
    summary: dict[str, Any],
    evaluation: list[tuple[str, str]],
) -> str:
    kept = adapter == run.stage(stage)
    others = made_from(run, stage) if kept else []
    behind = {other: run.read_recipe(stage=other, runs_functions=False).data for other in others}
    merged: torch.dtype | None = export_dtype(recipe, stage) if recipe.export.merge else None
    return model_card(
        recipe,
        stage,
        tokenizer,
        merged,
        summary=summary,
        evaluation=evaluation,
        compared=fidelity_line(compared) if compared else "",
        reads_text=_reads_text(recipe, stage, tokenizer),
        for_ollama=for_ollama,
        behind=behind,
    )


def _reads_text(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts were plain text that goes on, not conversations."""
    return not wraps_text(recipe.data, tokenizer) and _is_text(recipe, stage)


def _is_text(recipe: Recipe, stage: Stage) -> bool:
    """Whether the stage's prompts are plain text; a conversation is taken for granted where they are gone."""
    try:
        return isinstance(first_prompt(recipe.data, STAGES[stage].data_keys), str)
    except UserError:
        return False

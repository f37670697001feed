"""Export a stage of a run as a folder that stands alone, and see that what leaves is what was trained."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any, Literal

import torch

from lorarlhf.backbone.base import check_base, identify_base
from lorarlhf.backbone.load import load_model_config
from lorarlhf.data.examples import first_prompt
from lorarlhf.data.tokenizer import wraps_text
from lorarlhf.errors import UserError
from lorarlhf.memory import free_cached_memory
from lorarlhf.publishing.card import model_card, published
from lorarlhf.publishing.folder import write_marker, written_beside
from lorarlhf.publishing.merge import check_mergeable, export_dtype, stage_tokenizer, write_adapter, write_merged
from lorarlhf.recipe.sections import MergeBase, ModelConfig, Recipe, Stage
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import Run
from lorarlhf.stages.evaluate import report_lines
from lorarlhf.stages.fidelity import fidelity_line, trained_model

DType = Literal["bfloat16", "float16", "float32"]


def export(
    run: Run | Path | str,
    to: Path | str,
    stage: Stage | None = None,
    merge: bool | None = None,
    dtype: DType | None = None,
    base: MergeBase | None = None,
    allow_other_base: bool = False,
) -> Path:
    """Write a stage's model with tokenizer and model card into the folder `to`, whole or not at all; return `to`.

    A merged model is loaded back and compared with the run's own: the figures go into its card, into its
    `lorarlhf_export.json` and, as `export`, into the stage's `summary.json`.

    Args:
        run: a run, or its folder.
        to: a new folder, or that of an earlier export.
        stage: None takes the last one that has finished.
        merge: fold the adapter into the base model's weights, or leave it a plain PEFT adapter.
        dtype: of merged weights.
        base: what the adapter is merged onto: `dequantized` is the base as training multiplied it, `original` as it
            was published. These three are as in the recipe (`export`) if None.
        allow_other_base: take an adapter that says it was trained on another base model than the recipe's.

    Raises:
        UserError: there is no such run or stage, or `to` holds anything else.
    """
    run, to = Run(run), Path(to)
    export_run(run, to, stage or run.last_stage(), merge, dtype, base, allow_other_base)
    return to


def export_run(
    run: Run,
    to: Path,
    stage: Stage,
    merge: bool | None = None,
    dtype: DType | None = None,
    base: MergeBase | None = None,
    allow_other_base: bool = False,
) -> dict[str, Any]:
    """The same; returns the figures of the comparison, nothing if there was none."""
    recipe = _with_options(run.read_recipe(stage=stage), {"merge": merge, "dtype": dtype, "base": base})
    adapter = run.adapter(stage)
    if not allow_other_base:
        model_config = load_model_config(recipe.model)
        check_base(adapter, identify_base(recipe.model, getattr(model_config, "_commit_hash", None)))
    if recipe.export.merge:
        check_mergeable(recipe.model, stage)
    with written_beside(to) as folder:
        if recipe.export.merge:
            compared = _write_compared(recipe, stage, adapter, folder)
        else:
            compared = {}
            write_adapter(recipe, stage, adapter, folder)
        card = _card(run, recipe, stage, adapter, compared)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_marker(folder, {"stage": stage, "compared": compared or None})
    if compared:
        run.write_summary(stage, {**run.read_summary(stage), "export": compared})
    return compared


def _with_options(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    stated = {key: value for key, value in options.items() if value is not None}
    return recipe.model_copy(update={"export": recipe.export.model_copy(update=stated)})


def _write_compared(recipe: Recipe, stage: Stage, adapter: Path, folder: Path) -> dict[str, Any]:
    """One model in memory at a time: the run's, the merged one, the merged one as it is loaded."""
    trained = trained_model(recipe, stage, adapter, allow_other_base=True)  # it has been checked
    _free()
    write_merged(recipe, stage, adapter, folder)
    _free()
    if trained is None:
        return {}
    dtype = str(export_dtype(recipe, stage)).removeprefix("torch.")
    exported = ModelConfig(name=str(folder), quantization="none", trust_remote_code=recipe.model.trust_remote_code)
    compared = trained.compare(exported)
    return {"base": recipe.export.base, "dtype": dtype, **compared}


def _free() -> None:
    gc.collect()  # PEFT's wrapper and the model point to each other
    free_cached_memory()


def _card(run: Run, recipe: Recipe, stage: Stage, adapter: Path, compared: dict[str, Any]) -> str:
    tokenizer = stage_tokenizer(recipe, stage, adapter)
    evaluation = adapter / "evaluation.json"
    lines = []
    if evaluation.is_file():
        lines = report_lines(published(json.loads(evaluation.read_text(encoding="utf-8"))))
    merged: torch.dtype | None = export_dtype(recipe, stage) if recipe.export.merge else None
    return model_card(
        recipe,
        stage,
        tokenizer,
        merged,
        summary={key: value for key, value in run.read_summary(stage).items() if key != "export"},
        evaluation=lines,
        compared=fidelity_line(compared) if compared else "",
        reads_text=not wraps_text(recipe.data, tokenizer) and _is_text(recipe, stage),
    )


def _is_text(recipe: Recipe, stage: Stage) -> bool:
    """Whether the stage's prompts are plain text; a conversation is taken for granted where they are gone."""
    try:
        return isinstance(first_prompt(recipe.data, STAGES[stage].data_keys), str)
    except UserError:
        return False

"""Export a stage of a run as a folder that stands alone: weights, tokenizer, chat template, model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorarlhf import __version__
from lorarlhf.base_model import load_model_config
from lorarlhf.config import Recipe, Stage
from lorarlhf.errors import UserError
from lorarlhf.export.card import model_card, without_folders
from lorarlhf.recipes import resolve_path
from lorarlhf.run import Run, write_json

MARKER = "lorarlhf_export.json"  # written last; lists the export's files, so that a later one may replace them
STAGES: tuple[Stage, ...] = ("ppo", "sft", "reward")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_run(run: Run, to: Path, stage: Stage, merge: bool | None = None, dtype: str | None = None) -> None:
    """Write a stage's model into the folder `to`, whole or not at all.

    Merged, the adapter is added to the full-precision base model, not to the quantised one, and the sum is rounded to
    `dtype` once. Otherwise the adapter is copied as it is, in plain PEFT format. `merge` and `dtype` are the recipe's
    (`export`) unless given.

    Raises:
        UserError: the stage has no adapter, or `to` holds anything but an earlier export.
    """
    recipe = run.read_recipe()
    merge = recipe.export.merge if merge is None else merge
    dtype = dtype or recipe.export.dtype
    if not run.has_adapter(stage):
        raise UserError(
            f"{run.stage(stage)}: no adapter there to export; run `lorarlhf {stage} --output-dir {run.path}` first"
        )
    _check_replaceable(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as work:  # beside it: a rename is atomic
        folder = Path(work) / "new"
        folder.mkdir()
        tokenizer = _tokenizer(recipe, run.stage(stage), stage)
        if merge:
            model = merged_model(recipe, run.stage(stage), stage, tokenizer, DTYPES[dtype])
            model.save_pretrained(folder)
        else:
            _copy_adapter(recipe, run.stage(stage), folder)
        tokenizer.save_pretrained(folder)
        card = model_card(recipe, stage, run.read_summary(stage), merge, dtype)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_marker(folder)
        if to.exists():
            to.rename(Path(work) / "old")
        folder.rename(to)


def last_stage(run: Run) -> Stage:
    """The last stage of a run that has an adapter.

    Raises:
        UserError: none has.
    """
    run.read_recipe()  # says so if this is no run
    for stage in STAGES:
        if run.has_adapter(stage):
            return stage
    raise UserError(f"{run.path}: no stage of this run has an adapter to export; run `lorarlhf ppo` first")


def merged_model(
    recipe: Recipe, adapter: Path, stage: Stage, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> PreTrainedModel:
    """The base model with an adapter folded into its weights, on the CPU."""
    base = _load_base(recipe, stage, tokenizer)
    model = PeftModel.from_pretrained(base, str(adapter))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):  # one layer at a time in float32, to round its sum once
            weight = layer.get_base_layer().weight
            weight.data = weight.data.float()
            layer.merge()
            weight.data = weight.data.to(dtype)
    return model.unload().to(dtype)


def _load_base(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = recipe.model
    load_model_config(config)  # a wrong or missing model is one plain line
    kwargs: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    auto = AutoModelForCausalLM
    if stage == "reward":
        auto, kwargs = AutoModelForSequenceClassification, {**kwargs, "num_labels": 1}
    base = auto.from_pretrained(resolve_path(config.name), dtype="auto", use_safetensors=True, **kwargs)
    base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if stage == "reward":
        base.score.float()  # PEFT gives the adapter's head the type of this one
    else:
        _set_special_tokens(base.generation_config, tokenizer)
    return base


def _set_special_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad and eos are the tokenizer's; what else ended a response of the base model still does."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [token for token in ends if token is not None]
    if tokenizer.eos_token_id not in ends:
        ends.append(tokenizer.eos_token_id)
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    config.pad_token_id = tokenizer.pad_token_id


def _tokenizer(recipe: Recipe, folder: Path, stage: Stage) -> PreTrainedTokenizerBase:
    """As the stage left it, chat template included; padding on the side that its use calls for."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=recipe.model.trust_remote_code)
    tokenizer.padding_side = "right" if stage == "reward" else "left"
    return tokenizer


def _copy_adapter(recipe: Recipe, source: Path, folder: Path) -> None:
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = without_folders(recipe.model.name)
    write_json(folder / "adapter_config.json", {**config, "revision": recipe.model.revision})


def _write_marker(folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(folder / MARKER, {"lorarlhf": __version__, "files": files})


def _check_replaceable(to: Path) -> None:
    """Only what an earlier export wrote may go: not a file beside it, nor one of its own that was edited since."""
    if not to.exists():
        return
    if not to.is_dir():
        raise UserError(f"{to}: a file of that name exists; give --to a new folder")
    files = [path for path in to.rglob("*") if not path.is_dir()]
    marker = to / MARKER
    written = json.loads(marker.read_text(encoding="utf-8"))["files"] if marker.is_file() else []
    for path in files:
        name = path.relative_to(to).as_posix()
        if name == MARKER:
            continue
        if name not in written or path.stat().st_mtime_ns > marker.stat().st_mtime_ns:
            raise UserError(
                f"{to}: not empty, and {name} was not written by an earlier export; nothing is overwritten, give --to "
                "a new folder"
            )

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
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from lorarlhf import __version__
from lorarlhf.backbone.load import compute_dtype, load_model_config, quantization_config
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.errors import UserError
from lorarlhf.publishing.card import model_card, without_folders
from lorarlhf.recipe.sections import ModelConfig, Recipe, Stage
from lorarlhf.recipe.shipped import resolve_path
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import BEST, Run, write_json

MARKER = "lorarlhf_export.json"  # written last; lists the export's files, so that a later one may replace them
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_run(
    run: Run,
    to: Path,
    stage: Stage,
    merge: bool | None = None,
    dtype: str | None = None,
    checkpoint: str | int = BEST,
) -> None:
    """Write a stage's model into the folder `to`, whole or not at all.

    Args:
        merge: fold the adapter into the base model's weights (see `merged_model`), or copy it in plain PEFT format.
        dtype: of merged weights. Both are the recipe's (`export`) unless given; its dtype `auto` is bfloat16, but for a
            reward model what the run computes in, as rounding moves its scores.
        checkpoint: another adapter than the one that was kept, see `Run.adapter`.

    Raises:
        UserError: the stage has no adapter, or `to` cannot be written or holds anything but an earlier export.
    """
    recipe = run.read_recipe()
    finished, source = run.adapter(stage), run.adapter(stage, checkpoint)
    summary = run.read_summary(stage) if source == finished else {"checkpoint": source.parent.name}
    merge = recipe.export.merge if merge is None else merge
    torch_dtype = _dtype(recipe, stage, dtype)
    _check_replaceable(to)
    to = to.resolve()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-")  # beside it: a rename is atomic
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}; give --to another place") from error
    with work:
        folder = Path(work.name) / "new"
        folder.mkdir()
        tokenizer = _tokenizer(recipe, finished, stage)
        if merge:
            merged_model(recipe.model, source, stage, tokenizer, torch_dtype).save_pretrained(folder)
        else:
            _copy_adapter(recipe.model, source, folder)
        tokenizer.save_pretrained(folder)
        card = model_card(recipe, stage, summary, torch_dtype if merge else None)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_marker(folder)
        if to.exists():
            to.rename(Path(work.name) / "old")
        folder.rename(to)


def merged_model(
    config: ModelConfig, adapter: Path, stage: Stage, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> PreTrainedModel:
    """The base model with an adapter folded into its weights, on the CPU, each sum rounded to `dtype` once.

    A policy goes onto the full-precision base. A reward model goes onto the base it was trained on: quantised and
    dequantised again, because scores are compared with each other and with those of training. On the demo's reward
    model (NF4, computed in float32; scores spread by 1.2), the greatest change of a score is 2e-6 that way, 0.25 on the
    full-precision base with 2% of all pairs swapped, and 0.02 if rounded to bfloat16. After int8, which rounds
    activations as well, scores are close, not equal.
    """
    model_config = load_model_config(config)  # a wrong or missing model is one plain line
    if STAGES[stage].scores:
        if type(model_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise _no_classifier(config)
        base = _load_classifier(config, tokenizer)
    else:
        base = AutoModelForCausalLM.from_pretrained(**_from_pretrained(config), dtype="auto")
        _set_special_tokens(base.generation_config, tokenizer)
    base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, str(adapter))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):  # one layer at a time in float32
            weight = layer.get_base_layer().weight
            weight.data = weight.data.float()
            layer.merge()
            weight.data = weight.data.to(dtype)
    merged: PreTrainedModel = model.unload().to(dtype)
    return merged


def _load_classifier(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The base as training multiplied it, in full, with a head for one score."""
    trained_in = compute_dtype(config)
    quantization = quantization_config(config, trained_in)
    base: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        **_from_pretrained(config), num_labels=1, dtype=trained_in, quantization_config=quantization, device_map="cpu"
    )
    if quantization is not None:
        base = base.dequantize(dtype=trained_in)
        _restore_conv1d(base)
    if not isinstance(getattr(base, "score", None), nn.Linear):  # under another name PEFT would not find it
        raise _no_classifier(config)
    base.score.float()  # PEFT gives the adapter's head the type of this one
    return base


def _no_classifier(config: ModelConfig) -> UserError:
    return UserError(
        f"model.name: transformers has no sequence classifier for '{config.name}' that a merged reward model could be; "
        "export the adapter alone with --adapter-only"
    )


def _restore_conv1d(model: PreTrainedModel) -> None:
    """Quantising made GPT-2's transposed Conv1D layers Linear ones; as files they must be what the family has."""
    with torch.device("meta"):
        family = type(model)(model.config)
    for name, module in family.named_modules():
        if isinstance(module, Conv1D):
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            layer = Conv1D(module.nf, module.nx)
            layer.weight = nn.Parameter(linear.weight.data.T.contiguous())
            layer.bias = linear.bias
            model.set_submodule(name, layer)


def _from_pretrained(config: ModelConfig) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": resolve_path(config.name),
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
    }


def _dtype(recipe: Recipe, stage: Stage, option: str | None) -> torch.dtype:
    name = option or recipe.export.dtype
    if name != "auto":
        return DTYPES[name]
    return compute_dtype(recipe.model) if STAGES[stage].scores else torch.bfloat16


def _set_special_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad is the tokenizer's; a response ends with its eos, as its turns do, or as the base model's did."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [token for token in ends if token is not None]
    ends += [token for token in dict.fromkeys([tokenizer.eos_token_id, end_of_turn(tokenizer)]) if token not in ends]
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    config.pad_token_id = tokenizer.pad_token_id
    try:
        config.validate(strict=True)
    except ValueError:  # some models set a temperature but not do_sample, and would not be saved so
        config.do_sample = True


def _tokenizer(recipe: Recipe, folder: Path, stage: Stage) -> PreTrainedTokenizerBase:
    """As the stage left it, chat template included; padding on the side that its use calls for."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=recipe.model.trust_remote_code)
    tokenizer.padding_side = "right" if STAGES[stage].scores else "left"
    return tokenizer


def _copy_adapter(config: ModelConfig, source: Path, folder: Path) -> None:
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    adapter = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    base = {"base_model_name_or_path": without_folders(config.name), "revision": config.revision}
    write_json(folder / "adapter_config.json", {**adapter, **base})


def _write_marker(folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(folder / MARKER, {"lorarlhf": __version__, "files": files})


def _check_replaceable(to: Path) -> None:
    """Only what an earlier export wrote may go: not a file beside it, nor one of its own that was edited since."""
    if not to.exists():
        return
    if not to.is_dir():
        raise UserError(f"{to}: a file of that name exists and is not overwritten; give --to a new folder")
    marker = to / MARKER
    written, when = [MARKER], 0
    if marker.is_file():
        written += json.loads(marker.read_text(encoding="utf-8"))["files"]
        when = marker.stat().st_mtime_ns
    for path in sorted(to.rglob("*")):
        name = path.relative_to(to).as_posix()
        if not path.is_dir() and (name not in written or path.stat().st_mtime_ns > when):
            raise UserError(
                f"{to}: not empty, and {name} is not as an earlier export wrote it; nothing is overwritten, give --to "
                "a new folder"
            )

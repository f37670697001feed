"""The weights of an export: an adapter merged into its base model, or alone, with the tokenizer."""

from __future__ import annotations

import shutil
from dataclasses import replace
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

from lorarlhf.backbone.adapter_files import read_adapter
from lorarlhf.backbone.base import base_of
from lorarlhf.backbone.load import compute_dtype, load_model_config, quantization_config
from lorarlhf.data.tokenizer import end_of_turn
from lorarlhf.errors import UserError, first_line
from lorarlhf.json_file import read_object
from lorarlhf.publishing.card import without_folders
from lorarlhf.recipe.sections import MergeBase, ModelConfig, Recipe, Stage
from lorarlhf.recipe.shipped import resolve_path
from lorarlhf.recipe.stages import STAGES
from lorarlhf.run import write_json

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_dtype(recipe: Recipe, stage: Stage) -> torch.dtype:
    """The recipe's `export.dtype`; `auto` is bfloat16, but for a reward model what the run computes in."""
    if recipe.export.dtype != "auto":
        return DTYPES[recipe.export.dtype]
    return compute_dtype(recipe.model) if STAGES[stage].scores else torch.bfloat16


def write_merged(recipe: Recipe, stage: Stage, adapter: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The base model with the adapter in its weights, as the recipe's `export` has it, and the tokenizer."""
    dtype = export_dtype(recipe, stage)
    merged_model(recipe.model, adapter, stage, tokenizer, dtype, recipe.export.base).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_adapter(recipe: Recipe, adapter: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The adapter alone in plain PEFT format, with its tokenizer; it names no folder of this computer."""
    read_adapter(adapter)  # only what can be loaded here leaves
    shutil.copyfile(adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = read_object(adapter / "adapter_config.json")
    name = without_folders(recipe.model.name)
    write_json(
        folder / "adapter_config.json",
        {**config, "base_model_name_or_path": name, "revision": recipe.model.revision},
    )
    if base := base_of(adapter):
        replace(base, name=name).save(folder)
    tokenizer.save_pretrained(folder)


def stage_tokenizer(recipe: Recipe, stage: Stage, finished: Path) -> PreTrainedTokenizerBase:
    """As the stage left it in its folder, chat template included; padding on the side that its use calls for.

    Raises:
        UserError: one of its files is a link, which could carry any file of this computer into an export, or the files
            make no tokenizer.
    """
    if link := next((path for path in sorted(finished.iterdir()) if path.is_symlink()), None):
        raise UserError(f"{link}: is a link, and an export takes none; put the file itself in its place")
    try:
        tokenizer = AutoTokenizer.from_pretrained(finished, trust_remote_code=recipe.model.trust_remote_code)
    except Exception as error:  # of any kind: the files are somebody's
        raise UserError(f"{finished}: its tokenizer cannot be loaded ({first_line(error)}); fetch it again") from error
    tokenizer.padding_side = "right" if STAGES[stage].scores else "left"
    return tokenizer


def check_mergeable(config: ModelConfig, stage: Stage) -> None:
    """Raise UserError, without loading weights, for a wrong or missing model and for one that cannot score."""
    model_config = load_model_config(config)
    if STAGES[stage].scores and type(model_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise _no_classifier(config)


def merged_model(
    config: ModelConfig,
    adapter: Path,
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    base: MergeBase = "dequantized",
) -> PreTrainedModel:
    """The base model with an adapter folded into its weights, on the CPU, each sum rounded to `dtype` once.

    Args:
        base: `dequantized` is what training multiplied: quantised, and dequantised again. An adapter has learnt to mend
            what quantising broke, so that on the `original` weights it makes another model. After int8, which rounds
            activations as well, the dequantised one is close, not equal.
    """
    check_mergeable(config, stage)
    if STAGES[stage].scores:
        model = _load_base(AutoModelForSequenceClassification, config, base, num_labels=1)
        if not isinstance(getattr(model, "score", None), nn.Linear):  # under another name PEFT would not find it
            raise _no_classifier(config)
        model.score.float()  # PEFT gives the adapter's head the type of this one
    else:
        model = _load_base(AutoModelForCausalLM, config, base)
        _set_special_tokens(model.generation_config, tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    read_adapter(adapter)  # refuses what PEFT is not to see
    adapted = PeftModel.from_pretrained(model, str(adapter))
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):  # one layer at a time in float32
            weight = layer.get_base_layer().weight
            weight.data = weight.data.float()
            layer.merge()
            weight.data = weight.data.to(dtype)
    merged: PreTrainedModel = adapted.unload().to(dtype)
    return merged


def _load_base(auto: Any, config: ModelConfig, base: MergeBase, **options: Any) -> PreTrainedModel:
    """The base in full: as training multiplied it, or as it was published."""
    trained_in = compute_dtype(config)
    quantization = quantization_config(config, trained_in) if base == "dequantized" else None
    model: PreTrainedModel = auto.from_pretrained(
        **_from_pretrained(config),
        dtype=trained_in if base == "dequantized" else "auto",
        quantization_config=quantization,
        device_map="cpu",
        **options,
    )
    if quantization is not None:
        model = model.dequantize(dtype=trained_in)
        _restore_conv1d(model)
    return model


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

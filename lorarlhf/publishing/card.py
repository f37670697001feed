"""The model card: what a model is, how to load it, and how it came to be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from lorarlhf import __version__
from lorarlhf.data.endings import file_kind
from lorarlhf.recipe.sections import DataConfig, Recipe, Stage
from lorarlhf.recipe.shipped import SHIPPED
from lorarlhf.recipe.stages import STAGES, StageInfo
from lorarlhf.recipe.yaml import dump_yaml

LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
QUANTIZED = {"nf4": "4-bit NF4", "int8": "8-bit", "none": "unquantised"}


def model_card(recipe: Recipe, stage: Stage, summary: dict[str, Any], merged: torch.dtype | None) -> str:
    """The README.md of an export, with the metadata that the Hub reads. It names no folder of this computer.

    Args:
        summary: what `summary.json` of the stage holds; nothing in it is no section.
        merged: type of the merged weights, None for an adapter.
    """
    info, base = STAGES[stage], without_folders(recipe.model.name)
    public = {key: _public(value) for key, value in recipe.model_dump(mode="json").items()}
    sections = {
        f"{PurePosixPath(base).name}-{stage}": _about(recipe, info, base, merged),
        "Use": f"```python\n{_usage(recipe, info, base, merged)}\n```\n\n{_advice(info)}",
        "Data": _data(recipe.data, info),
        "Results": _results(summary),
        "Recipe": f"```yaml\n{dump_yaml(public)}```",
        "Versions": f"Exported with {_versions()}.",
    }
    title, *titles = [title for title, text in sections.items() if text]
    body = [f"# {title}\n\n{sections[title]}\n", *(f"## {title}\n\n{sections[title]}\n" for title in titles)]
    return f"---\n{dump_yaml(_metadata(recipe, info, merged))}---\n\n" + "\n".join(body)


def without_folders(value: str) -> str:
    """A name fit to be published: of an absolute path (or one below `~`) only the last part."""
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() or value.startswith("~"):
            return path.name
    return value


def is_hub_id(value: str) -> bool:
    """Whether a recipe's model or data source can be meant for the Hub: NAME or OWNER/NAME, and no path here."""
    looks = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", value)
    return looks is not None and not value.startswith(SHIPPED) and not Path(value).exists() and file_kind(value) is None


def _metadata(recipe: Recipe, stage: StageInfo, merged: torch.dtype | None) -> dict[str, Any]:
    """The card's YAML header; the Hub refuses a base model or data set that is no Hub id."""
    metadata: dict[str, Any] = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-classification" if stage.scores else "text-generation",
        "tags": ["lorarlhf", "lora", *(tag.format(algorithm=recipe.ppo.algorithm).lower() for tag in stage.tags)],
    }
    if is_hub_id(recipe.model.name):
        metadata["base_model"] = recipe.model.name
        metadata["base_model_relation"] = "finetune" if merged else "adapter"
    if recipe.export.license:
        metadata["license"] = recipe.export.license
    if datasets := sorted({source for source in stage.sources(recipe.data).values() if is_hub_id(source)}):
        metadata["datasets"] = datasets
    return metadata


def _about(recipe: Recipe, stage: StageInfo, base: str, merged: torch.dtype | None) -> str:
    precision = QUANTIZED[recipe.model.quantization]
    product = stage.product.format(algorithm=recipe.ppo.algorithm)
    lines = [f"This is {product}. It was made from `{base}` with LoRA on the {precision} base model by lorarlhf."]
    if merged is None:
        lines.append("This folder holds the adapter alone, in PEFT format; the base model is loaded beside it.")
    else:
        onto = "full-precision base model"
        if stage.scores and recipe.model.quantization != "none":
            onto = (
                f"{precision} base model dequantised, which is what it was trained on, so that its scores stay the same"
            )
        lines.append(f"The adapter is merged onto the {onto}; weights are {str(merged).removeprefix('torch.')}.")
    return "\n".join(lines)


def _usage(recipe: Recipe, stage: StageInfo, base: str, merged: torch.dtype | None) -> str:
    auto = "AutoModelForSequenceClassification" if stage.scores else "AutoModelForCausalLM"
    if merged is not None:
        return (
            f"from transformers import {auto}, AutoTokenizer\n"
            f'model = {auto}.from_pretrained("PATH_OR_REPO")\n'
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_REPO")'
        )
    quantization = {
        "nf4": f'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant={recipe.model.double_quant}',
        "int8": "load_in_8bit=True",
        "none": "",
    }[recipe.model.quantization]
    arguments = [f'"{base}"', *(["num_labels=1"] if stage.scores else [])]
    lines = [
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer{', BitsAndBytesConfig' if quantization else ''}",
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_REPO")',
    ]
    if quantization:
        lines.append(f"quantization = BitsAndBytesConfig({quantization})")
        arguments.append("quantization_config=quantization")
    lines.append(f"base = {auto}.from_pretrained({', '.join(arguments)})")
    if stage.scores:
        lines.append("base.config.pad_token_id = tokenizer.pad_token_id")
    return "\n".join([*lines, 'model = PeftModel.from_pretrained(base, "PATH_OR_REPO")'])


def _advice(stage: StageInfo) -> str:
    template = "`tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)`"
    lines = [f"A conversation goes through {template}, a plain text stays as it is."]
    if stage.scores:
        lines += [
            "What is scored is that, the response and `tokenizer.eos_token`, one after the other.",
            "The score is `model(...).logits`; what counts is the difference between responses to one prompt.",
        ]
    return "\n".join(lines)


def _data(data: DataConfig, stage: StageInfo) -> str:
    return "\n".join(
        f"- {'' if key.startswith(stage.data_key) else 'prompts of '}`data.{key}`: `{without_folders(source)}`"
        for key, source in stage.sources(data).items()
    )


def _results(summary: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in _flat(summary)
    ]
    return "\n".join(["| metric | value |", "|---|---|", *rows]) if rows else ""


def _flat(summary: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in summary.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{key}", _public(value)


def _public(value: Any) -> Any:
    """The same data with absolute paths cut to their names."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value


def _versions() -> str:
    return ", ".join([f"lorarlhf {__version__}", *(f"{library} {version(library)}" for library in LIBRARIES)])

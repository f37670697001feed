"""The model card: what a model is, how to load it, and how it came to be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lorarlhf.data.endings import file_kind
from lorarlhf.publishing.snippets import generation_code, scoring_code
from lorarlhf.recipe.sections import BETWEEN, DataConfig, Recipe, Stage, title_of
from lorarlhf.recipe.shipped import SHIPPED
from lorarlhf.recipe.stages import STAGES, StageInfo
from lorarlhf.recipe.yaml import dump_yaml
from lorarlhf.version import __version__

LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
# Of summaries, what a person would say. A key not named here is read as its words.
LABELS = {
    "kl": "KL to the reference, nats a response",
    "response_length": "response length, tokens",
    "finished": "share of responses that end themselves",
    "objective": "objective",
    "longer_wins_accuracy": "accuracy of preferring the longer response",
    "dropped_too_long": "examples left out for their length",
    "seconds": "time, s",
    "peak_memory_gb": "peak memory, GB",
    "train_rows": "train examples there were",
    "eval_examples": "held-out examples",
    "eval_rows": "held-out examples there were",
    "eval_prompts": "held-out prompts",
}
PARTS = {"before": "before training", "best": "policy that was kept"}
OLLAMA = "In the folder of these files: `ollama create my-model -f Modelfile`, then `ollama run my-model`."
_MARKS = re.compile(r"[\\`|\[\]*]")  # not _, which stands in names
QUANTIZED = {"nf4": "4-bit NF4", "int8": "8-bit", "none": "unquantised"}


def model_card(
    recipe: Recipe,
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    merged: torch.dtype | None,
    summary: Mapping[str, Any],
    evaluation: Sequence[tuple[str, str]] = (),
    compared: str = "",
    reads_text: bool = False,
    for_ollama: bool = False,
    behind: Mapping[Stage, DataConfig] | None = None,
) -> str:
    """The README.md of an export, with the metadata that the Hub reads. It names no folder of this computer.

    Args:
        recipe: what the stage was run with, with whatever the export was told.
        merged: type of the merged weights, None for an adapter.
        summary: what `summary.json` of the stage holds; nothing in it is no section.
        evaluation: what `lorarlhf evaluate` said line by line, each with its heading.
        compared: how near the merged model is to the one that was trained.
        reads_text: prompts were plain text that goes on, not conversations.
        for_ollama: a Modelfile lies beside it.
        behind: the stages of the run whose adapters it was made from, with the data that they were told.
    """
    info, base = STAGES[stage], without_folders(recipe.model.name)
    learnt_from = {stage: recipe.data, **(behind or {})}
    code = (scoring_code if info.scores else generation_code)(recipe, tokenizer, base, merged is not None, reads_text)
    sections = {
        _escaped(f"{PurePosixPath(base).name}-{stage}"): _about(recipe, info, base, merged, compared),
        "Use": f"{_fenced('python', code)}\n\n{_advice(info, reads_text)}",
        "Ollama": OLLAMA if for_ollama else "",
        "Data": "\n".join(line for each, data in learnt_from.items() for line in _data(data, STAGES[each], info)),
        "Evaluation": _evaluation(evaluation),
        "Training": results_table(summary),
        "Recipe": _fenced("yaml", dump_yaml(published(recipe.model_dump(mode="json")))),
        "Versions": f"Exported with {_versions()}.",
    }
    title, *titles = [title for title, text in sections.items() if text]
    body = [f"# {title}\n\n{sections[title]}\n", *(f"## {title}\n\n{sections[title]}\n" for title in titles)]
    return f"---\n{dump_yaml(_metadata(recipe, info, merged, learnt_from))}---\n\n" + "\n".join(body)


def without_folders(value: str) -> str:
    """A name fit to be published: of a path that says where it lies here only the last part, of home nothing.

    Of several names, each.
    """
    if BETWEEN in value:
        return BETWEEN.join(map(without_folders, value.split(BETWEEN)))
    if value.lower().startswith("file:"):
        return PurePosixPath(value).name
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() or value.startswith(("~", ".\\", "./")) or ".." in path.parts:
            return path.name
    home = str(Path.home())
    return value.replace(home, "~") if len(home) > 1 else value


def is_hub_id(value: str) -> bool:
    """Whether a recipe's model or data source can be meant for the Hub: NAME or OWNER/NAME, and no path here."""
    looks = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", value)
    return looks is not None and not value.startswith(SHIPPED) and not Path(value).exists() and file_kind(value) is None


def _metadata(
    recipe: Recipe, stage: StageInfo, merged: torch.dtype | None, learnt_from: Mapping[Stage, DataConfig]
) -> dict[str, Any]:
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
    taken = [STAGES[each].sources(data) for each, data in learnt_from.items()]
    used = {each.source for keys in taken for sources in keys.values() for each in sources}
    if datasets := sorted(filter(is_hub_id, used)):
        metadata["datasets"] = datasets
    return metadata


def _about(recipe: Recipe, stage: StageInfo, base: str, merged: torch.dtype | None, compared: str) -> str:
    precision = QUANTIZED[recipe.model.quantization]
    product = stage.product.format(algorithm=recipe.ppo.algorithm)
    lines = [f"This is {product}. It was made from {_span(base)} with LoRA on the {precision} base model by lorarlhf."]
    if merged is None:
        lines.append("This folder holds the adapter alone, in PEFT format; the base model is loaded beside it.")
        return "\n".join(lines)
    onto = f"{precision} base model dequantised, which is what it was trained on"
    if recipe.model.quantization == "none":
        onto = "base model it was trained on"
    elif recipe.export.base == "original":
        onto = f"base model as it was published, which is not quite what it was trained on ({precision})"
    lines.append(f"The adapter is merged onto the {onto}; weights are {str(merged).removeprefix('torch.')}.")
    if compared:
        lines.append(f"Loaded back and laid {compared}.")
    return "\n".join(lines)


def _advice(stage: StageInfo, reads_text: bool) -> str:
    prompts = (
        "Prompts were plain text, read as it is, with the special tokens that the tokenizer sets."
        if reads_text
        else "Prompts were conversations, written by the chat template of this tokenizer; it sets all special tokens."
    )
    if not stage.scores:
        return prompts
    return (
        f"{prompts}\nPrompt and response are tokenised apart, as in training. Of a score only the difference between "
        "responses to one prompt counts."
    )


def _evaluation(lines: Sequence[tuple[str, str]]) -> str:
    about = [text for name, text in lines if not name]
    rows = [(name, text) for name, text in lines if name]
    return "\n".join(
        [f"{_escaped(text[:1].upper() + text[1:])}, of the run's own model.\n" for text in about] + _table(rows)
    )


def _data(data: DataConfig, stage: StageInfo, exported: StageInfo) -> Iterator[str]:
    """A line each of what a stage trained and was tested on."""
    whose = "" if stage is exported else f" ({stage.title})"
    for key, sources in stage.sources(data).items():
        prompts = "" if key.startswith(stage.data_key) else "prompts of "
        named = [each.model_copy(update={"source": without_folders(each.source)}) for each in sources]
        yield f"- {prompts}`data.{key}`{whose}: {_span(title_of(named))}"


def results_table(summary: Mapping[str, Any]) -> str:
    """What a stage reported, in words."""
    rows = [(label, f"{value:.4g}" if isinstance(value, float) else str(value)) for label, value in _flat(summary)]
    return "\n".join(_table(rows))


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"| {_escaped(name)} | {_escaped(value)} |" for name, value in rows]
    return ["| | |", "|---|---|", *lines] if lines else []


def _escaped(text: str) -> str:
    """A line of Markdown that shows the text: what it quotes is from recipes, data and files of a run."""
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", " ".join(text.splitlines())).replace("<", "&lt;")


def _span(text: str) -> str:
    """Text in a code span, which no text in it can end."""
    line = " ".join(text.split())
    ticks = "`" * (_longest_run(line) + 1)
    padding = " " if "`" in line else ""
    return f"{ticks}{padding}{line}{padding}{ticks}"


def _fenced(language: str, code: str) -> str:
    """A block of code, which no line in it can end."""
    fence = "`" * max(3, _longest_run(code) + 1)
    return f"{fence}{language}\n{code.rstrip(chr(10))}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _flat(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in summary.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{PARTS.get(key, key)}: ")
        elif isinstance(value, (int, float, str)):
            interval = summary.get(f"{key}_interval")
            said = f"{value:.4g} (95%: {interval[0]:.4g} to {interval[1]:.4g})" if interval else published(value)
            yield f"{prefix}{_label(key)}", said


def _label(key: str) -> str:
    """`eval_` means held out."""
    if key in LABELS:
        return LABELS[key]
    name = f"held-out {LABELS.get(rest, rest)}" if (rest := key.removeprefix("eval_")) != key else key
    return name.replace("_", " ")


def published(value: Any) -> Any:
    """The same data with absolute paths cut to their names."""
    if isinstance(value, Mapping):
        return {key: published(item) for key, item in value.items()}
    if isinstance(value, list):
        return [published(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value


def _versions() -> str:
    return ", ".join([f"lorarlhf {__version__}", *(f"{library} {version(library)}" for library in LIBRARIES)])

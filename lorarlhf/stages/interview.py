"""The five answers that `lorarlhf init` makes a recipe of, read and looked up: card, model, data, taste, time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from lorarlhf.backbone.load import load_model_config, load_tokenizer
from lorarlhf.data.inspect import Report, inspect_source
from lorarlhf.data.sources import splits_of
from lorarlhf.data.tokenizer import has_chat_template, may_think
from lorarlhf.errors import UserError
from lorarlhf.memory import available_memory_bytes, total_memory_bytes
from lorarlhf.planner.fit import this_target
from lorarlhf.planner.plan import Target
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.recipe.shipped import list_recipes, planned_for, resolve_path, shipped_folder
from lorarlhf.rl.functions import packages_of
from lorarlhf.stages.inspect import tokens_of

GIB = 2**30
DESKTOP = GIB // 2  # what it takes of a card; the recipes that ship leave as much
CPU_RECIPE = "smollm2-135m-cpu"
LOOKED_AT = 2000  # rows of the data
FEWEST_PROMPTS = 20  # of which some are held out
COMPARISONS = "comparisons"
OPEN_LICENCES = ("apache-2.0", "mit")  # of models that the Hub gives to everyone


@dataclass(frozen=True)
class Card:
    """What is trained on.

    Attributes:
        capacity: bytes that a stage may take.
        name: as people call it.
    """

    target: Target
    capacity: int
    name: str


@dataclass(frozen=True)
class BaseModel:
    """A base model, of which no weights have been loaded.

    Attributes:
        chats: whether it comes with a chat template.
        thinks: whether that leaves it open if it thinks before it answers.
        licence: as a recipe that ships has it; None of a model that none has.
    """

    name: str
    config: PreTrainedConfig
    parameters: int
    chats: bool
    thinks: bool
    licence: str | None

    @property
    def size(self) -> str:
        """As `1.5 billion`."""
        unit, name = (1e9, "billion") if self.parameters >= 1e9 else (1e6, "million")
        return f"{self.parameters / unit:.1f} {name}"


@dataclass(frozen=True)
class Data:
    """What is learnt from.

    Attributes:
        kind: comparisons, scored completions, demonstrations or prompts.
        base: the shared recipe that has it, as `base/ultrafeedback`; None of the user's own.
        report: what its first rows hold, in the model's tokens; None where `base` has been sized for it.
        splits: its own names for what to train and test on; None where a source has no splits.
    """

    source: str
    kind: str
    base: str | None = None
    report: Report | None = None
    train_split: str | None = None
    test_split: str | None = None

    @property
    def compares(self) -> bool:
        """Whether a reward model can be learnt from it."""
        return self.kind in (COMPARISONS, "scored completions")


def suggested_card() -> str:
    """This machine's."""
    return "cpu" if this_target() == "cpu" else str(round(total_memory_bytes() / GIB))


def read_card(answer: str) -> Card:
    """`8`, `8 GB` or `cpu`, which means this machine's."""
    if answer.lower() == "cpu":
        return Card("cpu", available_memory_bytes(), "a CPU")
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:gi?b)?", answer.lower())
    if found is None or float(found[1]) < 1:
        raise UserError(f"card: expected its memory in GB, as 8, or cpu, got {answer!r}")
    size = float(found[1])
    return Card("cuda", int(size * GIB) - DESKTOP, f"a card of {size:g} GB")


def suggested_model(card: Card) -> str:
    """Of the recipes that ship for such a card, the largest model that everyone may have and that leaves some room."""
    names = {0.0: load_recipe(CPU_RECIPE).model.name}
    for info in list_recipes() if card.target == "cuda" else []:
        planned = planned_for(info.path)
        if (
            planned
            and planned.free * GIB <= card.capacity
            and planned.peaks.get("reward", math.inf) < planned.free * 0.65
        ):
            recipe = load_recipe(info.name)
            if recipe.export.license in OPEN_LICENCES:
                names[planned.peaks["reward"]] = recipe.model.name
    return names[max(names)]


def read_model(name: str) -> BaseModel:
    """Raises UserError if it cannot be read, or if its folder has no weights."""
    model = ModelConfig(name=name)
    config, tokenizer = load_model_config(model), load_tokenizer(model)
    folder = Path(resolve_path(name))
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise UserError(f"model: {name} has no *.safetensors; give a folder with the weights, or a Hub id")
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    shipped = (load_recipe(info.name) for info in list_recipes())
    licence = next((recipe.export.license for recipe in shipped if recipe.model.name == name), None)
    return BaseModel(name, config, parameters, has_chat_template(tokenizer), may_think(tokenizer), licence)


def shipped_sets() -> dict[str, str]:
    """Short names of the data sets that recipes are made for, and the shared recipes that have them."""
    bases = sorted(path.stem for path in (shipped_folder("recipes") / "base").glob("*.yaml"))
    return {name: f"base/{name}" for name in bases if name != "training"}


def read_data(source: str, model: BaseModel) -> Data:
    """Look at the first rows.

    Raises:
        UserError: no such file or data set, of no known format, or too few rows of use.
    """
    base = shipped_sets().get(source)
    if base is not None:
        return Data(source, COMPARISONS, base)
    splits = splits_of(source)
    train = "train" if "train" in splits or not splits else splits[0]
    test = next((split for split in ("test", "validation") if split in splits and split != train), None)
    report = inspect_source(source, train, {}, tokens_of(model.name), max_length=1, most=LOOKED_AT)
    if report.prompts < FEWEST_PROMPTS:
        raise UserError(f"data: {source} has {report.prompts} different prompts; {FEWEST_PROMPTS} are the least")
    return Data(source, report.kind, None, report, train if splits else None, test)


def recognised(data: Data) -> str:
    """One line that says what the data were taken for."""
    if data.report is None:
        return f"{data.kind}, as recipes/{data.base}.yaml has them"
    rows = f"{data.report.rows:,}" if data.report.rows < LOOKED_AT else f"the first {LOOKED_AT:,}"
    bad = sum(count for count, _ in data.report.bad.values())
    left_out = f", {bad:,} of no use: {next(iter(data.report.bad))}" if bad else ""
    return f"{data.kind}: {data.report.format}, as {data.report.why}; {rows} rows{left_out}"


def read_taste(answer: str, data: Data) -> str | None:
    """The function that gives the reward, as `module:function`; None where comparisons teach a reward model.

    It is imported, from wherever it is: whoever names it here has said that it may run.

    Raises:
        UserError: there is nothing to learn a reward model from, or no such function.
    """
    if answer == COMPARISONS:
        if not data.compares:
            raise UserError(
                f"taste: {data.source} holds {data.kind}, which compare nothing; name a reward function as "
                "module:function, or give data with comparisons"
            )
        return None
    if not re.fullmatch(r"[\w.]+:\w+", answer):
        raise UserError(f"taste: expected {COMPARISONS}, or a reward function as my_rewards:score, got {answer!r}")
    packages_of(answer)
    return answer


def read_time(answer: str) -> float:
    """Hours."""
    try:
        hours = float(answer.lower().removesuffix("h").strip())
    except ValueError:
        hours = math.nan
    if not 0 < hours <= 1000:  # NaN neither
        raise UserError(f"time: expected hours, as 8 or 0.5, got {answer!r}")
    return hours

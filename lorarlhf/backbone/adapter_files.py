"""The files of an adapter, which may come from elsewhere: read strictly, before PEFT sees anything of them.

PEFT takes what adapter_config.json says: patterns are matched as regular expressions, whole modules are copied, an
initialisation changes the base's weights, a rank is allocated. Of all that, lorarlhf takes what it writes itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import TaskType
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lorarlhf.errors import UserError, first_line
from lorarlhf.json_file import read_object
from lorarlhf.recipe.sections.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SCORE_KEY = "base_model.model.score.weight"  # where PEFT keeps the head of a sequence classifier
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST_BYTES = 2**20  # of a config: PEFT's have a few thousand
# What says nothing about what is computed, and goes no further than this file.
UNREAD = {
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode"),
    *("lora_dropout", "megatron_core", "qalora_group_size"),
}

ModuleName = Annotated[str, Field(pattern=r"\A[\w.]{1,200}\z")]
EndOfName = Annotated[str, Field(pattern=r"\A(\.\*\\\.)?[\w.]{1,200}\z")]  # as PEFT writes them: `.*\.gate_up_proj`


class LoraFile(Section):
    """What an adapter_config.json may say."""

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] | None = None
    r: PositiveInt
    lora_alpha: PositiveFloat
    target_modules: Annotated[list[ModuleName], Field(min_length=1, max_length=10_000)]
    # All but one part of the model, as `Adapters.attach` leaves out the towers of a model of text and images.
    exclude_modules: Annotated[str, Field(pattern=r"\A\(\?!(\w|\\\.)+\\\.\)\.\*\z", max_length=200)] | None = None
    layers_to_transform: Annotated[list[NonNegativeInt], Field(max_length=10_000)] | None = None
    # Of the stacked experts of a mixture: PEFT adapts parameters, some of them with another rank.
    target_parameters: Annotated[list[ModuleName], Field(max_length=10_000)] | None = None
    rank_pattern: dict[EndOfName, PositiveInt] = Field(default={})
    alpha_pattern: dict[EndOfName, PositiveFloat] = Field(default={})
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian"] = True
    modules_to_save: list[Literal["score", "classifier"]] | None = None  # PEFT's names of a classifier's head
    bias: Literal["none"] = "none"

    @property
    def ranks(self) -> set[int]:
        return {self.r, *self.rank_pattern.values()}


def read_adapter(folder: Path) -> tuple[PeftLoraConfig, dict[str, Tensor]]:
    """Config, without dropout, and weights, all finite, of a plain LoRA adapter. Raises UserError otherwise."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} there; give the folder of a PEFT adapter saved as safetensors")
    said = _read_config(folder / CONFIG)
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({first_line(error)}); fetch or make it again") from error
    _check_weights(folder, said.ranks, state)
    config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        **said.model_dump(exclude={"peft_type", "task_type", "modules_to_save", "init_lora_weights", "lora_alpha"}),
        lora_alpha=said.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it, and takes any number
    )
    return config, state


def _read_config(file: Path) -> LoraFile:
    values = read_object(file, MOST_BYTES)
    said = {
        key: value for key, value in values.items() if key in LoraFile.model_fields or not _says_nothing(key, value)
    }
    try:
        return LoraFile.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        reason = "is not known here" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(
            f"{file}: {key[:60]!r}: {reason}; only plain LoRA with the names of its modules is loaded: merge the "
            "adapter, or train anew"
        ) from None


def _says_nothing(key: str, value: object) -> bool:
    """Of what other versions of PEFT have beside, what is switched off: null, false, empty."""
    return key in UNREAD or value in (None, False, {}, [])


def _check_weights(folder: Path, ranks: set[int], state: dict[str, Tensor]) -> None:
    """Nothing but A of [r, in] and B of [out, r], of stacked experts r times their number, and perhaps a head.

    All of it finite.
    """
    for key, tensor in state.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype not in FLOATS:
            raise UserError(f"{folder}: {key[:200]} is {kind}, and no float of 16 bits or more; fetch or make it again")
        if not tensor.isfinite().all():
            raise UserError(
                f"{folder}: NaN or infinity in {key[:200]}; the adapter is spoiled, take another or train anew"
            )
        if key == SCORE_KEY:
            continue
        side = {".lora_A.weight": 0, ".lora_B.weight": 1}.get("." + ".".join(key.split(".")[-2:]))
        if side is None:
            raise UserError(
                f"{folder}: {key[:200]} is more than the A and B of a plain LoRA adapter; merge it, or train anew"
            )
        rank = tensor.shape[side] if tensor.dim() == 2 else 0
        if rank not in ranks and not (".experts." in key and rank and any(rank % r == 0 for r in ranks)):
            shape = f"{kind} {list(tensor.shape)}"
            said = ", ".join(map(str, sorted(ranks)))
            raise UserError(f"{folder}: {key[:200]} is {shape}, and {CONFIG} says r is {said}; fetch or make it again")

"""LoRA adapters in plain PEFT format."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig as PeftLoraConfig
from peft import TaskType
from safetensors.torch import load_file
from torch import Tensor

from lorarlhf.errors import UserError

SCORE_KEY = "base_model.model.score.weight"  # where PEFT keeps the head of a sequence classifier


def read_adapter(folder: Path) -> tuple[PeftLoraConfig, dict[str, Tensor]]:
    """Config, without dropout, and weights of a LoRA adapter that may come from elsewhere."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} there; give the folder of a PEFT adapter saved as safetensors")
    config = PeftLoraConfig.from_pretrained(str(folder))
    state = load_file(folder / "adapter_model.safetensors")
    other = [key for key in state if key != SCORE_KEY and not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    if other:
        raise UserError(
            f"{folder}: {other[0]} is more than the A and B of a plain LoRA adapter; merge it, or train anew"
        )
    config.task_type, config.modules_to_save, config.inference_mode = TaskType.CAUSAL_LM, None, False
    config.lora_dropout = 0.0
    return config, state


def same_shape(a: PeftLoraConfig, b: PeftLoraConfig) -> bool:
    names = ("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform")
    return all(getattr(a, name) == getattr(b, name) for name in names)

"""A recipe's section as transformers' training arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, TrainingArguments

from lorarlhf.memory import accelerator
from lorarlhf.recipe.sections import SupervisedConfig, TrainingConfig

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(config: TrainingConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Arguments that every stage passes to `transformers.TrainingArguments`."""
    return {
        "output_dir": str(folder),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": config.optim,
        "save_total_limit": config.save_total_limit,
        "report_to": "none",  # `Trackers` does, of what the display shows
        "seed": seed,
        "use_cpu": accelerator() is None,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "gradient_checkpointing": False,  # the backbone does it, so that recomputation keeps its role
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }


def supervised_arguments(config: SupervisedConfig, folder: Path, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the stages that go through a data set in epochs; `dtype` is what the backbone computes in."""
    return {
        **training_arguments(config, folder, seed),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "logging_steps": config.logging_steps,
        "save_steps": config.save_steps,
        "bf16": dtype == torch.bfloat16,
    }


def has_router_loss(config: PreTrainedConfig) -> bool:
    """Whether TRL's SFTTrainer adds a loss that keeps a mixture's experts evenly used; as TRL finds out."""
    text = config.get_text_config()
    return hasattr(text, "output_router_logits") and getattr(text, "router_aux_loss_coef", 0.0) != 0


def one_device(args: Arguments) -> Arguments:
    """The same arguments for one device a process: transformers would put `nn.DataParallel` around the model where more
    are visible, which copies a quantised base for each step."""
    args._n_gpu = min(args.n_gpu, 1)
    return args

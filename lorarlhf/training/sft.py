"""Supervised fine-tuning: TRL's SFTTrainer on the shared backbone's policy role."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import SFTConfig as TRLSFTConfig
from trl import SFTTrainer

from lorarlhf.backbone.batch import TokenBatch, tokens_of_similar_rows
from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import SFTConfig
from lorarlhf.training.arguments import one_device, supervised_arguments
from lorarlhf.training.checkpoint import WholeCheckpoints
from lorarlhf.training.processes import SharedBatches

IGNORED = -100  # the label of a token that no loss counts


class PolicySFTTrainer(SharedBatches, WholeCheckpoints, SFTTrainer):
    """TRL's SFTTrainer on tokenised rows with labels."""

    def __init__(
        self, backbone: SharedBackbone, config: SFTConfig, train: Dataset, test: Dataset, folder: Path, seed: int
    ) -> None:
        self.backbone = backbone
        backbone.train_roles("policy")
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        super().__init__(
            model=backbone.peft_model,  # type: ignore[arg-type]  # attached by the caller
            args=one_device(
                TRLSFTConfig(**supervised_arguments(config, folder, seed, backbone.compute_dtype), max_length=None)
            ),
            train_dataset=train,
            eval_dataset=test,
            processing_class=backbone.tokenizer,
        )
        backbone.train_roles("policy")  # TRL has cast the adapter to bfloat16: back to float32
        self.remove_callback(PrinterCallback)
        tokens = tokens_of_similar_rows(backbone.device)
        self.budget = TokenBudget("evaluation", tokens, "lower data.max_length or take a smaller model")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, of rows of similar length at a time where they add up: `num_items_in_batch` is of the whole step."""
        whole = functools.partial(super().compute_loss, model, num_items_in_batch=num_items_in_batch)
        # Processes exchange numbers pass by pass, so each must make as many; a mixture's loss of its router is a mean.
        one_pass = self.accelerator.num_processes > 1 or self.aux_loss_enabled
        if one_pass or return_outputs or num_items_in_batch is None:
            return whole(inputs, return_outputs=return_outputs)
        parts = of_similar_length(inputs, tokens_of_similar_rows(inputs["input_ids"].device))
        return torch.stack([whole(part) for part in parts]).sum()

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The mean loss a token of a batch of the evaluation, computed in parts once memory has run out."""
        whole = functools.partial(
            super().prediction_step, model, prediction_loss_only=prediction_loss_only, ignore_keys=ignore_keys
        )
        if self.accelerator.num_processes > 1:  # they exchange numbers batch by batch: one alone cannot take two
            return whole(inputs)
        ids = inputs["input_ids"]

        def attempt(tokens: int) -> Tensor:
            parts = list(of_similar_length(inputs, tokens))
            losses = torch.stack([whole(part)[0] for part in parts])
            counted = torch.stack([(part["labels"][:, 1:] != IGNORED).sum() for part in parts]).to(losses)
            return (losses * (counted / counted.sum().clamp(min=1))).sum()

        return self.budget.run(attempt, most=ids.numel(), least=ids.shape[1]), None, None

    def leave_out(self, batch: dict[str, Any], rows: int) -> dict[str, Any]:
        if rows:
            return {key: value[:rows] for key, value in batch.items()}
        nothing = {key: value[:1, :2] for key, value in batch.items()}  # a row has to go through the model all the same
        return {**nothing, "labels": torch.full_like(nothing["labels"], IGNORED)}


def of_similar_length(batch: dict[str, Tensor], tokens: int) -> Iterator[dict[str, Tensor]]:
    """A right-padded batch in parts of at most so many tokens (or one row), each cut to its longest row."""
    lengths = batch["attention_mask"].sum(1)
    for rows in TokenBatch(batch["input_ids"], lengths, torch.zeros_like(lengths)).micro_batches(tokens):
        width = int(lengths[rows].max())
        yield {key: value[rows, :width] for key, value in batch.items()}

"""Supervised fine-tuning: TRL's SFTTrainer on the shared backbone's policy role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import SFTConfig as TRLSFTConfig
from trl import SFTTrainer

from lorarlhf.backbone.batch import TokenBatch, parts_of_similar_length
from lorarlhf.backbone.budget import TokenBudget, tokens_a_pass
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import SFTConfig
from lorarlhf.training.arguments import one_device, supervised_arguments
from lorarlhf.training.checkpoint import WholeCheckpoints
from lorarlhf.training.processes import SharedBatches

IGNORED = -100  # the label of a token that no loss counts
# Among the numbers to be logged, each how many of how many:
LIKELIEST = "likeliest_tokens"  # labels that were the likeliest token
PADDING = "padding_tokens"  # computed tokens that are no row's


class PolicySFTTrainer(SharedBatches, WholeCheckpoints, SFTTrainer):
    """TRL's SFTTrainer on tokenised rows with labels, with a loss that is read where labels are.

    TRL's head multiplies every token with the output layer, and again in backward; here what is counted is, once. Of a
    mixture whose router has a loss of its own, TRL computes all of it.
    """

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
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step here
        self.tokens_a_pass = tokens_a_pass(backbone.device)
        self.budget = TokenBudget("evaluation", self.tokens_a_pass, "lower data.max_length or take a smaller model")
        self._seen = self._nothing_seen()

    def passes(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows of similar length at a time; of a mixture all of them, as the loss of its router is a mean."""
        return iter([batch]) if self.aux_loss_enabled else of_similar_length(batch, self.tokens_a_pass)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The negative log-probability of labelled tokens, summed and divided by `num_items_in_batch`, or by theirs."""
        if self.aux_loss_enabled or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        counted = labels != IGNORED
        lengths = inputs["attention_mask"].sum(1)
        states = self.backbone.hidden_states(
            "policy", TokenBatch(inputs["input_ids"], lengths, torch.zeros_like(lengths))
        )
        found = self.backbone.predictions(states[:, :-1][counted], labels[counted], with_entropy=False)
        computed = torch.tensor(inputs["input_ids"].numel(), device=lengths.device)
        self._seen += torch.stack([found.is_likeliest.sum(), counted.sum(), lengths.sum(), computed])
        if num_items_in_batch is None:
            return -found.logprobs.sum() / counted.sum().clamp(min=1)
        # `num_items_in_batch` is of all processes, whose gradients are averaged.
        items = torch.as_tensor(num_items_in_batch).clamp(min=1)
        return -found.logprobs.sum() / items * self.accelerator.num_processes

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._count("train")
        return loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The mean loss a token of a batch of the evaluation, computed in parts once memory has run out."""
        if self.aux_loss_enabled and self.accelerator.num_processes > 1:  # they exchange numbers batch by batch
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        batch = self._prepare_inputs(self._without_repeats(inputs, self.args.per_device_eval_batch_size))
        ids = batch["input_ids"]

        @torch.no_grad()
        def attempt(tokens: int) -> Tensor:
            self._seen = self._nothing_seen()
            parts = list(of_similar_length(batch, tokens))
            losses = torch.stack([self.compute_loss(model, part) for part in parts])
            counted = torch.stack([(part["labels"][:, 1:] != IGNORED).sum() for part in parts]).to(losses)
            return (losses * (counted / counted.sum().clamp(min=1))).sum()

        with self.compute_loss_context_manager():
            loss = self.budget.run(attempt, most=ids.numel(), least=ids.shape[1])
        self._count("eval")
        return loss, None, None

    # Numbers that are logged: of all tokens since the last time, of all processes

    def _nothing_seen(self) -> Tensor:
        """[4] of a batch: labelled tokens that were the likeliest, labelled tokens, tokens, tokens with padding."""
        return torch.zeros(4, dtype=torch.long, device=self.accelerator.device)

    def _count(self, mode: str) -> None:
        """Add up what was seen, once a batch: processes may have made other numbers of passes over it."""
        likeliest, labelled, tokens, computed = self.accelerator.reduce(self._seen).tolist()
        self._seen = self._nothing_seen()
        for name, (some, of) in {LIKELIEST: (likeliest, labelled), PADDING: (computed - tokens, computed)}.items():
            before = self._metrics[mode].get(name, [0, 0])
            self._metrics[mode][name] = [before[0] + some, before[1] + of]
        self._total_train_tokens += tokens if mode == "train" else 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train" if self.backbone.causal_lm.training else "eval"]
        likeliest, labelled = metrics.pop(LIKELIEST, [0, 0])
        padding, computed = metrics.pop(PADDING, [0, 0])
        if labelled:  # none where TRL computes the loss
            metrics |= {
                "mean_token_accuracy": [likeliest / labelled],
                "num_tokens": [self._total_train_tokens],
                "padding": [padding / computed],
            }
        super().log(logs, start_time)

    def leave_out(self, batch: dict[str, Any], rows: int) -> dict[str, Any]:
        if rows:
            return {key: value[:rows] for key, value in batch.items()}
        nothing = {key: value[:1, :2] for key, value in batch.items()}  # a row has to go through the model all the same
        return {**nothing, "labels": torch.full_like(nothing["labels"], IGNORED)}


def of_similar_length(batch: dict[str, Tensor], tokens: int) -> Iterator[dict[str, Tensor]]:
    """A right-padded batch in parts of at most so many tokens (or one row), each cut to its longest row."""
    lengths = batch["attention_mask"].sum(1).tolist()
    for rows in parts_of_similar_length(lengths, tokens):
        width = max(lengths[row] for row in rows)
        yield {key: value[rows, :width] for key, value in batch.items()}

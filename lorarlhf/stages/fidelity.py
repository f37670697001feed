"""How near an exported model comes to what was trained: measured, not taken for granted.

What is kept of the run's model are token ids and a few numbers: it is gone from memory before the export is merged, and
that before the export is loaded back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import compute_dtype, load_backbone, load_model_config, quantization_config
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import SPLITS, Loaded, load_prompt_rows
from lorarlhf.data.rows import NO_COLUMNS, PromptRow
from lorarlhf.data.tokenized import read_by_model
from lorarlhf.errors import UserError
from lorarlhf.evaluation.reward_model import score_tokens
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import ResponseSampler
from lorarlhf.memory import accelerator
from lorarlhf.recipe.sections import ModelConfig, Recipe, Stage
from lorarlhf.recipe.stages import STAGES
from lorarlhf.rl.kl import kl_estimate
from lorarlhf.stages.evaluate import prompts_of
from lorarlhf.training.objectives import OBJECTIVES

RESPONSES = 8
COMPARISONS = 64
logger = logging.getLogger(__name__)


class Trained(Protocol):
    """What the run's own model says, to be compared with what an export says."""

    def compare(self, exported: ModelConfig) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Responses:
    """Responses of the run's policy.

    Attributes:
        sequences: B prompts and responses, on the CPU.
        logprobs: [B, R] of the response tokens, 0 at padding.
        temperature: that they were sampled and are compared at.
    """

    sequences: TokenBatch
    logprobs: Tensor
    temperature: float

    @torch.no_grad()
    def compare(self, exported: ModelConfig) -> dict[str, Any]:
        """KL(run || export) in nats a response, by k3 (see `kl_estimate`); the largest gap is of one token, in nats."""
        model = _load_back(AutoModelForCausalLM, exported)
        logprobs = torch.zeros_like(self.logprobs)
        lengths = self.sequences.lengths.tolist()
        for i, (start, end) in enumerate(zip(self.sequences.prompt_lengths.tolist(), lengths, strict=True)):
            row = self.sequences.tokens[i : i + 1, :end].to(model.device)
            logits = model(input_ids=row).logits[0, start - 1 : end - 1].float() / self.temperature
            targets = row[0, start:end].unsqueeze(1)
            logprobs[i, : end - start] = logits.log_softmax(-1).gather(1, targets).squeeze(1).cpu()
        return {
            "responses": len(logprobs),
            "kl": kl_estimate(self.logprobs, logprobs, "k3").sum(1).mean().item(),
            "largest_gap": (self.logprobs - logprobs).abs().max().item(),
        }


@dataclass(frozen=True)
class Scores:
    """Scores of the run's reward model.

    Attributes:
        rows: token ids of N sequences.
        scores: [N].
        pairs: [P, 2] the rows that are compared with each other.
    """

    rows: Sequence[Sequence[int]]
    scores: Tensor
    pairs: Tensor

    def compare(self, exported: ModelConfig) -> dict[str, Any]:
        """The mean distance of scores beside their spread (standard deviation), and the share of pairs whose order
        is another; an order that has become a tie counts half."""
        scores = classifier_scores(exported, self.rows)
        before, after = (each[self.pairs[:, 0]] - each[self.pairs[:, 1]] for each in (self.scores, scores))
        swapped = (before * after < 0).float() + 0.5 * ((before != 0) & (after == 0)).float()
        return {
            "comparisons": len(self.pairs),
            "mean_gap": (self.scores - scores).abs().mean().item(),
            "spread": self.scores.std().item(),
            "swapped": swapped.mean().item(),
        }


@torch.no_grad()
def classifier_scores(exported: ModelConfig, rows: Sequence[Sequence[int]]) -> Tensor:
    """[N] what transformers' sequence classifier says of token ids, computed in the type its file has."""
    model = _load_back(AutoModelForSequenceClassification, exported)
    return torch.tensor([model(input_ids=torch.tensor([row], device=model.device)).logits.item() for row in rows])


def trained_model(recipe: Recipe, stage: Stage, adapter: Path, allow_other_base: bool = False) -> Trained | None:
    """What the run's own model, quantised and with its adapter, says of held-out data; None where none can be read.

    Data to train on stands in where nothing is held out.
    """
    if STAGES[stage].scores:
        backbone = _with_adapter(recipe, stage, adapter, allow_other_base)
        return _scores(backbone, recipe)
    loaded = _prompts(recipe, stage)
    if loaded is None:
        return None
    backbone = _with_adapter(recipe, stage, adapter, allow_other_base)
    try:
        prompts = read_by_model(loaded, recipe.data, backbone.tokenizer, "test")
    except UserError as error:  # all are too long for ppo: fine-tuning goes by another limit
        _say_not_compared(error)
        return None
    return _responses(backbone, recipe, [example.ids for example in prompts[:RESPONSES]])


def _with_adapter(recipe: Recipe, stage: Stage, adapter: Path, allow_other_base: bool) -> SharedBackbone:
    backbone = load_backbone(recipe.model, recipe.data)
    backbone.load_role(STAGES[stage].role, adapter, allow_other_base=allow_other_base)
    return backbone.eval()


def _prompts(recipe: Recipe, stage: Stage) -> Loaded[PromptRow] | None:
    data = prompts_of(recipe.data, stage)
    try:
        loaded = (load_prompt_rows(data, split, NO_COLUMNS) for split in reversed(SPLITS))
        return next(found for found in loaded if found.rows)
    except UserError as error:
        _say_not_compared(error)
        return None


@torch.no_grad()
def _responses(backbone: SharedBackbone, recipe: Recipe, prompts: list[list[int]]) -> Responses:
    config = recipe.ppo
    uniforms = uniform_table(len(prompts), config.response_length, "export", recipe.seed)
    rollout = ResponseSampler(backbone, config.response_length, config.temperature, "export").sample(prompts, uniforms)
    logprobs, _ = backbone.logprobs("policy", rollout.sequences, config.temperature, with_entropy=False)
    return Responses(rollout.sequences.to(torch.device("cpu")), logprobs.cpu(), config.temperature)


def _scores(backbone: SharedBackbone, recipe: Recipe) -> Scores | None:
    objective = OBJECTIVES[recipe.reward.objective]
    try:
        examples = (objective.examples(recipe.data, backbone.tokenizer, split).dataset for split in reversed(SPLITS))
        dataset = next(found for found in examples if len(found))
    except UserError as error:
        _say_not_compared(error)
        return None
    columns = [dataset[:COMPARISONS][name] for name in objective.sequences]
    rows = [row for column in columns for row in column]
    count = len(rows) // len(columns)
    # Of rated rows each is compared with its neighbour.
    pairs = [(i, count + i) if len(columns) == 2 else (i, (i + 1) % count) for i in range(count)]
    return Scores(rows, score_tokens(backbone, rows), torch.tensor(pairs))


def _say_not_compared(error: UserError) -> None:
    logger.warning("the export is not compared with the run's own model, as its data cannot be read: %s", error)


def _load_back(auto: Any, exported: ModelConfig) -> PreTrainedModel:
    """An exported model as anyone loads it; on the accelerator as much of it as fits."""
    load_model_config(exported)  # a wrong or missing model is one plain line
    model: PreTrainedModel = auto.from_pretrained(
        exported.name,
        trust_remote_code=exported.trust_remote_code,
        quantization_config=quantization_config(exported, compute_dtype(exported)),
        use_safetensors=True,
        device_map="auto" if accelerator() else "cpu",
    )
    model.eval()
    return model


def fidelity_line(compared: Mapping[str, Any]) -> str:
    """What a comparison says to people."""
    what = f"{compared['base']} base, {compared['dtype']}"
    remedy = "; --dtype float32 rounds less" if compared.get("swapped") and compared["dtype"] != "float32" else ""
    if "kl" in compared:
        return (
            f"beside the run's own model: KL {compared['kl']:.2g} nats a response, largest gap "
            f"{compared['largest_gap']:.2g} nats a token ({compared['responses']} responses; {what})"
        )
    return (
        f"beside the run's own model: scores are off by {compared['mean_gap']:.2g} in the mean (they spread by "
        f"{compared['spread']:.2g}), {compared['swapped']:.1%} of {compared['comparisons']} comparisons swapped "
        f"({what}){remedy}"
    )

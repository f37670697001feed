"""The loss of a batch of sft, and in which passes it is computed."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from demo_runs import small_recipe
from trl import SFTTrainer

from lorarlhf.backbone.batch import parts_of_similar_length
from lorarlhf.recipe.sections import LoraShape
from lorarlhf.training.arguments import has_router_loss
from lorarlhf.training.sft import IGNORED, PolicySFTTrainer

LENGTHS = [(3, 9), (6, 2), (1, 20), (12, 5), (4, 1)]  # prompts and responses
SHAPE = LoraShape(r=4, alpha=8, target_modules="all-linear")


@pytest.fixture
def trainer_of(tmp_path):
    """`trainer_of(backbone)`: a trainer on it whose adapter changes something, and the rows above as a batch."""

    def make(backbone):
        generator = torch.Generator().manual_seed(0)
        backbone.attach("policy", SHAPE)
        for parameter in backbone.role_parameters("policy"):
            parameter.data.normal_(std=0.05, generator=generator)
        vocabulary = backbone.causal_lm.config.vocab_size
        rows = []
        for prompt, response in LENGTHS:
            ids = torch.randint(vocabulary, (prompt + response,), generator=generator).tolist()
            rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
        data = Dataset.from_list(rows)
        trainer = PolicySFTTrainer(backbone, small_recipe(tmp_path).sft, data, data.select([]), tmp_path / "sft", 0)
        trainer._step_batches, trainer.current_gradient_accumulation_steps = [], 2  # as `train` sets them
        return trainer, trainer.data_collator(rows)

    return make


def gradients(backbone):
    found = [parameter.grad.clone() for parameter in backbone.role_parameters("policy")]
    backbone.zero_grad()
    return found


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_loss_and_gradients_are_those_of_cross_entropy_and_of_trl(load_tiny, trainer_of, tokens):
    trainer, batch = trainer_of(load_tiny("qwen2", quantization="none", compute_dtype="float32"))
    backbone, items = trainer.backbone, torch.tensor(50)  # of a whole step, of which this is a part
    trainer.tokens_a_pass = tokens
    labels = batch["labels"][:, 1:]
    with backbone.role("policy"):
        losses, found = [trainer.training_step(trainer.model, batch, items)], [gradients(backbone)]
        logits = backbone.causal_lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        of_words = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="sum") / items
        for loss in (of_words, SFTTrainer.compute_loss(trainer, trainer.model, batch, num_items_in_batch=items)):
            loss.backward()
            losses.append(loss.detach())
            found.append(gradients(backbone))
    for loss, each in zip(losses[1:], found[1:], strict=True):
        torch.testing.assert_close(losses[0], loss, rtol=1e-5, atol=0)
        for ours, theirs in zip(found[0], each, strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    right = ((logits[:, :-1].argmax(-1) == labels) & (labels != IGNORED)).sum().item()
    assert trainer._metrics["train"]["likeliest_tokens"] == [right, sum(response for _, response in LENGTHS)]


def test_a_quantised_output_layer_is_multiplied_with_as_it_computes(load_tiny, trainer_of):
    trainer, batch = trainer_of(load_tiny("llama", quantize_head=True))
    backbone = trainer.backbone
    assert "Linear4bit" in type(backbone.causal_lm.get_output_embeddings()).__name__
    with backbone.role("policy"):
        loss = trainer.training_step(trainer.model, batch, torch.tensor(37))
        with torch.no_grad(), backbone.autocast():
            logits = backbone.causal_lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), batch["labels"][:, 1:])
    torch.testing.assert_close(loss, expected, rtol=2e-2 if logits.dtype == torch.bfloat16 else 1e-4, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(backbone))


def test_a_mixture_whose_router_has_a_loss_is_trls(load_tiny, trainer_of):
    trainer, batch = trainer_of(load_tiny("mixtral", quantization="none", compute_dtype="float32"))
    assert has_router_loss(trainer.backbone.causal_lm.config)
    items = torch.tensor(37)
    with trainer.backbone.role("policy"):
        loss = trainer.training_step(trainer.model, batch, items)
        assert loss == SFTTrainer.compute_loss(trainer, trainer.model, batch, num_items_in_batch=items)
        assert trainer._metrics["train"]["aux_loss"][0] > 0
    assert not has_router_loss(load_tiny("llama").causal_lm.config)


def test_logged_accuracy_is_of_all_tokens_of_all_batches(load_tiny, trainer_of, monkeypatch):
    trainer, _ = trainer_of(load_tiny("qwen2", quantization="none", compute_dtype="float32"))
    monkeypatch.setattr(
        trainer, "state", SimpleNamespace(log_history=[], epoch=None, num_input_tokens_seen=0, global_step=1)
    )
    rows = []
    monkeypatch.setattr("transformers.Trainer.log", lambda self, logs, *_: rows.append(dict(logs)))
    for likeliest, labelled in ((9, 10), (0, 90)):
        trainer._seen = torch.tensor([likeliest, labelled, 100, 125])
        trainer._count("train")
    trainer.model.train()
    trainer.log({"loss": 1.0})
    trainer.log({"loss": 1.0})
    assert rows == [{"loss": 1.0, "mean_token_accuracy": 0.09, "num_tokens": 200, "padding": 0.2}, {"loss": 1.0}]


@pytest.mark.parametrize(("router_loss", "widths"), [(False, [600, 2]), (True, [600])])
def test_rows_of_other_lengths_are_other_passes_where_losses_add_up(router_loss, widths):
    trainer = object.__new__(PolicySFTTrainer)
    trainer.aux_loss_enabled, trainer.tokens_a_pass = router_loss, 512
    mask = torch.zeros(2, 600, dtype=torch.long)
    mask[0, :2] = mask[1] = 1
    passes = trainer.passes({"input_ids": torch.ones(2, 600, dtype=torch.long), "attention_mask": mask})
    assert [part["input_ids"].shape[1] for part in passes] == widths


@pytest.mark.parametrize("tokens", [1, 64, 160, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_parts_of_similar_length_cost_less(tokens, seed):
    lengths = random.Random(seed).choices(range(1, 90), k=7)

    def cost(parts):
        fits = all(len(part) == 1 or len(part) * max(part) <= tokens for part in parts)
        return sum(len(part) * max(part) + tokens // 16 for part in parts) if fits else float("inf")

    descending = sorted(lengths, reverse=True)
    cuts = [cut for size in range(7) for cut in itertools.combinations(range(1, 7), size)]
    ends = [[0, *cut, 7] for cut in cuts]
    least = min(cost([descending[a:b] for a, b in itertools.pairwise(end)]) for end in ends)
    parts = parts_of_similar_length(lengths, tokens)
    assert sorted(row for part in parts for row in part) == list(range(7))
    assert cost([[lengths[row] for row in part] for part in parts]) == least

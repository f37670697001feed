"""The sft stage: the loss counts the response alone, and the adapter is plain PEFT."""

import json
import math

import pytest
import torch
from demo_runs import DEMO, read_jsonl, small_recipe
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import UserError
from lorarlhf.run import Run
from lorarlhf.stages.sft import train_sft
from lorarlhf.training.sft import PolicySFTTrainer


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train(*sets)`: the summary of a small sft stage, its backbone, its rows, and the batches it saw."""

    def make(*sets, name="run"):
        recipe, run = small_recipe(tmp_path, *sets), Run(tmp_path / name)
        backbone = load_backbone(recipe.model)
        batches = []

        def spy(trainer, model, inputs, *args, real=PolicySFTTrainer.compute_loss, **kwargs):
            batches.append({key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)})
            return real(trainer, model, inputs, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(PolicySFTTrainer, "compute_loss", spy)
            summary = train_sft(recipe, run, backbone=backbone)
        return summary, backbone, read_jsonl(run.stage("sft") / "metrics.jsonl"), batches

    return make


def demonstrations():
    """Token ids of prompt and response of each row, from the text of both."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    for line in (DEMO / "sft.jsonl").read_text().splitlines()[:40]:
        *asked, answer = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        yield prompt_ids, [*tokenizer(answer["content"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@torch.no_grad()
def bare_loss(model, rows):
    """Mean negative log-likelihood of the response tokens, one row at a time."""
    total, count = 0.0, 0
    for prompt, response in rows:
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].double()
        for t, token in enumerate(response, start=len(prompt)):
            total -= torch.log_softmax(logits[t - 1], dim=-1)[token].item()
            count += 1
    return total / count


def rows_of(batch, known):
    """The demonstrations of a batch, whatever it was padded with."""
    by_length = {tuple(prompt + response): (prompt, response) for prompt, response in known}
    ids = [
        tuple(row[: mask.sum()].tolist()) for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    return [by_length[row] for row in ids]


def test_the_first_loss_counts_the_response_alone(train, tmp_path):
    _, _, rows, batches = train()
    first = rows_of(batches[0], demonstrations())
    assert len(first) == 4
    bare = load_backbone(small_recipe(tmp_path).model).causal_lm
    expected = bare_loss(bare, first)
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-4)
    with_prompts = bare_loss(bare, [(ids[:1], ids[1:]) for ids in (prompt + response for prompt, response in first)])
    assert abs(with_prompts - expected) > 0.05, "the prompt would have made a difference"


def test_labels_are_the_response_and_its_eos(train):
    _, backbone, _, batches = train()
    for batch in batches:
        for (_, response), labels in zip(rows_of(batch, demonstrations()), batch["labels"], strict=True):
            assert labels[labels != -100].tolist() == response
            assert response[-1] == backbone.tokenizer.eos_token_id


def test_accumulated_gradients_are_those_of_one_batch(train):
    """Every token weighs the same, however the responses are split."""
    one = train("sft.per_device_train_batch_size=8", "sft.max_steps=2", name="one")[2]
    two = train("sft.gradient_accumulation_steps=2", "sft.max_steps=2", name="two")[2]
    for a, b in zip(one, two, strict=True):
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def test_rows_of_similar_length_add_up_to_the_whole_batch(train, monkeypatch):
    adapters, rows = [], []
    for tokens in (10**6, 40):
        monkeypatch.setattr("lorarlhf.training.sft.tokens_of_similar_rows", lambda _, tokens=tokens: tokens)
        summary, backbone, logged, _ = train("sft.max_steps=2", name=str(tokens))
        adapters.append([parameter.detach().clone() for parameter in backbone.role_parameters("policy")])
        rows.append((summary["eval_loss"], logged[0]["loss"], logged[0]["grad_norm"]))
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)
    for parts, whole in zip(*adapters, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


def test_held_out_loss_and_summary(train, tmp_path):
    summary, backbone, rows, _ = train()
    assert Run(tmp_path / "run").read_summary("sft") == summary
    assert set(summary) == {
        *("eval_loss", "eval_perplexity", "train_examples", "eval_examples", "dropped_too_long"),
        *("train_rows", "eval_rows", "steps", "seconds", "peak_memory_gb"),
    }
    assert summary["eval_perplexity"] == pytest.approx(math.exp(summary["eval_loss"]))
    assert summary["train_examples"] + summary["eval_examples"] == 40
    assert summary["eval_examples"] > 1
    assert rows[-1]["eval_loss"] == summary["eval_loss"]
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_training_lowers_the_loss_of_the_policy_and_leaves_the_base(train, tmp_path):
    summary, backbone, rows, _ = train("sft.max_steps=12", "sft.learning_rate=3e-3", "sft.logging_steps=4")
    assert rows[2]["loss"] < rows[0]["loss"]
    known = list(demonstrations())
    sequences = TokenBatch.from_lists(*zip(*known, strict=True))
    with torch.no_grad():
        policy, base = (backbone.logprobs(role, sequences)[0].sum() for role in ("policy", "reference"))
        bare = load_backbone(small_recipe(tmp_path).model).logprobs("reference", sequences)[0].sum()
    assert policy > base
    assert base == bare
    assert all(parameter.dtype == torch.float32 for parameter in backbone.role_parameters("policy"))
    assert summary["steps"] == 12


def test_plain_peft_loads_the_adapter(train, tmp_path):
    _, backbone, _, _ = train("model.quantization=none")
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    tokens = torch.tensor([[1, 40, 41, 42, 43]])
    with torch.no_grad():
        bare = base(tokens).logits
        plain = PeftModel.from_pretrained(base, str(tmp_path / "run" / "sft"))(tokens).logits
        sequence = TokenBatch(tokens, torch.tensor([5]), torch.tensor([0]))
        own = backbone.logits(backbone.hidden_states("policy", sequence))
    torch.testing.assert_close(plain, own, rtol=1e-4, atol=1e-4)
    assert (plain - bare).abs().max() > 1e-3


def test_gradient_checkpointing_changes_nothing_but_memory(train):
    _, without, rows, _ = train(name="without")
    _, with_, rows_with, _ = train("sft.gradient_checkpointing=true", name="with")
    assert not without.causal_lm.is_gradient_checkpointing
    assert with_.causal_lm.is_gradient_checkpointing
    for a, b in zip(rows[:-1], rows_with[:-1], strict=True):
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


def test_nothing_held_out(train):
    summary, _, _, _ = train("data.test_size=0")
    assert summary["eval_examples"] == 0
    assert "eval_loss" not in summary


def test_a_quantised_output_layer_of_a_mixture_is_refused_before_anything_is_loaded(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("lorarlhf.stages.sft.load_for_training", None)
    recipe = small_recipe(tmp_path, f"model.name={tiny_model('mixtral')}", "model.quantize_head=true")
    with pytest.raises(
        UserError, match=r"model\.quantize_head: .*; use --set model\.quantize_head=false for this stage"
    ):
        train_sft(recipe, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_evaluation_goes_on_in_parts_where_memory_runs_out(tmp_path, monkeypatch):
    sets = ("sft.per_device_eval_batch_size=8", "sft.max_steps=1")
    recipe = small_recipe(tmp_path, *sets)
    expected = train_sft(recipe, tmp_path / "whole")["eval_loss"]
    real, seen = PolicySFTTrainer.compute_loss, []

    def compute_loss(trainer, model, inputs, *args, **kwargs):
        if not model.training:
            seen.append(len(inputs["input_ids"]))
            if seen[-1] > 3:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return real(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(PolicySFTTrainer, "compute_loss", compute_loss)
    assert train_sft(recipe, tmp_path / "parts")["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert seen[0] == sum(seen[1:]) == 7
    assert max(seen[1:]) == 3


@pytest.mark.parametrize("where", ["compute_loss", "optimizer_step"])
def test_training_that_runs_out_of_memory_ends_in_one_line(tmp_path, monkeypatch, where):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    if where == "compute_loss":
        monkeypatch.setattr(PolicySFTTrainer, "compute_loss", fail)
    else:
        monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(UserError, match=r"^training: out of memory; lower per_device_train_batch_size .*--resume$"):
        train_sft(small_recipe(tmp_path), tmp_path / "run")

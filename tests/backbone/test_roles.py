"""What each of four roles on one base computes, against plain transformers and PEFT, and the files they leave."""

from __future__ import annotations

import json
import math
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import (
    EOS,
    PAD,
    ROLES,
    SHAPE,
    assert_identical,
    attach_all,
    expected_trained,
    mixed_sequences,
    randomise,
    requiring_grad,
    rows_of,
)
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.scorer import SequenceScorer
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import LoraShape

NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


# What the roles compute


def test_a_reference_without_adapter_is_the_bare_base(load_tiny):
    backbone = load_tiny("llama")
    sequences = mixed_sequences()
    with torch.no_grad():
        bare, _ = backbone.logprobs("reference", sequences)
        backbone.attach("policy", SHAPE)
        assert_identical(backbone.logprobs("policy", sequences)[0], bare)  # B is 0
        randomise(backbone, "policy")
        assert not torch.allclose(backbone.logprobs("policy", sequences)[0], bare, atol=1e-2)
        assert_identical(backbone.logprobs("reference", sequences)[0], bare)


def test_a_copy_starts_equal_and_stays_where_it_is(load_tiny):
    backbone = load_tiny("llama")
    backbone.attach("policy", SHAPE)
    backbone.attach("reward", SHAPE)
    randomise(backbone, "policy", "reward")
    backbone.copy_role("policy", "reference")
    backbone.copy_role("reward", "critic")
    sequences = mixed_sequences()
    with torch.no_grad():
        start = backbone.logprobs("policy", sequences)
        assert_identical(backbone.logprobs("reference", sequences), start)
        values = backbone.values(sequences)
        scores = backbone.scores(sequences)
        assert_identical(backbone.value_head.weight, backbone.reward_head.weight)
        randomise(backbone, "policy", "critic")
        assert_identical(backbone.logprobs("reference", sequences), start)
        assert_identical(backbone.scores(sequences), scores)
        assert not torch.allclose(backbone.logprobs("policy", sequences)[0], start[0], atol=1e-2)
        assert not torch.allclose(backbone.values(sequences), values, atol=1e-2)


@pytest.mark.parametrize("shape", [LoraShape(r=2, alpha=8, target_modules="all-linear"), SHAPE])
def test_copying_over_an_adapter_replaces_its_shape_too(load_tiny, shape):
    backbone = load_tiny("llama")
    backbone.attach("policy", LoraShape(r=SHAPE.r, alpha=32, target_modules=["q_proj", "v_proj"]))
    backbone.attach("reference", shape)
    randomise(backbone, "policy", "reference")
    backbone.copy_role("policy", "reference")
    sequences = mixed_sequences()
    with torch.no_grad():
        assert_identical(backbone.logprobs("reference", sequences), backbone.logprobs("policy", sequences))


@pytest.fixture
def saved(load_tiny, tmp_path) -> tuple[SharedBackbone, Path]:
    """A backbone with four roles, and the folder that each is saved in under its name."""
    backbone = attach_all(load_tiny("qwen2"))
    for role in ROLES:
        backbone.save_role(role, tmp_path / role)
    return backbone.eval(), tmp_path


def plain(folder: Path, auto=AutoModelForSequenceClassification, **options) -> PreTrainedModel:
    """An adapter loaded the way anybody would, without this package."""
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    base = auto.from_pretrained(name, quantization_config=NF4, dtype=torch.float32, **options)
    for module in base.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # some CPUs would compute in bfloat16, 1% off
    return PeftModel.from_pretrained(base, str(folder)).eval()


def plain_causal_lm(folder: Path) -> PreTrainedModel:
    return plain(folder, AutoModelForCausalLM)


def plain_classifier(folder: Path) -> PreTrainedModel:
    return plain(folder, num_labels=1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_logprobs_and_entropy_equal_a_row_by_row_computation(saved, temperature):
    backbone, folder = saved
    sequences = mixed_sequences()
    logprobs, entropy = backbone.logprobs("policy", sequences, temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    model = plain_causal_lm(folder / "policy")
    expected_logprobs, expected_entropy = torch.zeros(5, 6), torch.zeros(5, 6)
    for row, (prompt, response) in enumerate(rows_of(sequences)):
        logits = model(torch.tensor([prompt + response])).logits[0].tolist()
        for position, token in enumerate(response):
            scores = [score / temperature for score in logits[len(prompt) + position - 1]]
            log_total = math.log(math.fsum(math.exp(score) for score in scores))
            expected_logprobs[row, position] = scores[token] - log_total
            expected_entropy[row, position] = math.fsum(math.exp(s - log_total) * (log_total - s) for s in scores)
    assert_close(logprobs, expected_logprobs, rtol=1e-4, atol=1e-4)
    assert_close(entropy, expected_entropy, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_values_equal_a_row_by_row_computation(saved):
    backbone, folder = saved
    sequences = mixed_sequences()
    values = backbone.values(sequences)
    assert values.dtype == torch.float32
    model = plain_classifier(folder / "critic")
    compared = 0
    for row, (prompt, response) in enumerate(rows_of(sequences)):
        assert not values[row, len(response) :].any()
        for position in range(len(response)):  # the state before each token, as the last of a sequence
            before = prompt + response[:position]
            if before[-1] != PAD:  # plain transformers reads the score before trailing pads, real or not
                expected = model(torch.tensor([before])).logits.item()
                assert values[row, position].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
                compared += 1
    assert compared == 10


@torch.no_grad()
def test_scores_equal_a_row_by_row_computation(saved):
    backbone, folder = saved
    sequences = mixed_sequences()
    scores = backbone.scores(sequences)
    assert scores.dtype == torch.float32
    model = plain_classifier(folder / "reward")
    expected = torch.cat(
        [model(torch.tensor([prompt + response])).logits[0] for prompt, response in rows_of(sequences)]
    )
    ends_with_pad = torch.tensor([(p + r)[-1] == PAD for p, r in rows_of(sequences)])
    assert ends_with_pad.any()
    assert_close(scores[~ends_with_pad], expected[~ends_with_pad], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[ends_with_pad], expected[ends_with_pad], atol=1e-2)


@torch.no_grad()
def test_plain_peft_scores_a_padded_batch_as_training_saw_it(saved):
    """Pad differs from eos, so sequence classification finds the eos that ends each response."""
    backbone, folder = saved
    rows = [[5, 6, 7, EOS], [9, EOS, 8, 8, 8, EOS], [4, EOS]]
    batch = backbone.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
    expected = backbone.scores(TokenBatch.from_lists([row[:1] for row in rows], [row[1:] for row in rows]))
    assert_close(plain_classifier(folder / "reward")(**batch).logits.squeeze(-1), expected, rtol=1e-4, atol=1e-4)


def test_no_response_at_all(load_tiny):
    backbone = attach_all(load_tiny("llama"))
    sequences = TokenBatch.from_lists([[5, 6], [7]], [[], []])
    logprobs, entropy = backbone.logprobs("policy", sequences)
    values = backbone.values(sequences)
    assert logprobs.shape == entropy.shape == values.shape == (2, 0)
    (logprobs.sum() + values.sum()).backward()  # a minibatch of empty responses must not stop training


def test_the_scorer_that_trl_trains_is_the_backbone_under_another_name(load_tiny):
    backbone = attach_all(load_tiny("qwen2"))
    scorer = SequenceScorer(backbone)
    own = {tensor.data_ptr() for tensor in backbone.parameters()}
    assert {tensor.data_ptr() for tensor in scorer.parameters()} == own
    rows = [[5, 6, 7, EOS], [9, EOS, 8, 8, 8, EOS], [4, EOS]]
    batch = backbone.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
    expected = backbone.scores(TokenBatch.from_lists(rows, [[], [], []]))
    assert_identical(scorer(batch["input_ids"], batch["attention_mask"]).logits.squeeze(-1), expected)
    assert requiring_grad(backbone) == expected_trained(backbone)


# Files


@pytest.mark.parametrize("role", ROLES)
@torch.no_grad()
def test_a_saved_role_computes_the_same_when_loaded(saved, load_tiny, role):
    backbone, folder = saved
    fresh = load_tiny("qwen2")
    fresh.load_role("policy", folder / "policy")  # beside another adapter
    fresh.load_role(role, folder / role)
    sequences = mixed_sequences()
    assert_identical(fresh.hidden_states(role, sequences), backbone.hidden_states(role, sequences))
    if role == "reward":
        assert_identical(fresh.scores(sequences), backbone.scores(sequences))
    if role == "critic":
        assert_identical(fresh.values(sequences), backbone.values(sequences))


@torch.no_grad()
def test_loading_replaces_an_adapter_of_another_shape(saved, load_tiny):
    backbone, folder = saved
    fresh = load_tiny("qwen2")
    fresh.attach("policy", LoraShape(r=SHAPE.r, alpha=1, target_modules=["q_proj"]))  # another scale: no shape differs
    fresh.load_role("policy", folder / "policy")
    sequences = mixed_sequences()
    assert_identical(fresh.logprobs("policy", sequences), backbone.logprobs("policy", sequences))


def test_saving_asks_the_hub_nothing(saved, monkeypatch):
    backbone, folder = saved
    backbone.peft_model.peft_config["policy"].base_model_name_or_path = "someone/model"
    asked = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *a: asked.append(a))
    backbone.save_role("policy", folder / "again")
    assert not asked


def test_dropout_of_an_adapter_from_elsewhere_is_off(load_tiny, tiny_model, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    config = LoraConfig(
        r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(base, config).save_pretrained(tmp_path)
    backbone = load_tiny("llama")
    backbone.load_role("policy", tmp_path)
    sequences = mixed_sequences()
    with torch.no_grad():
        expected, _ = backbone.eval().logprobs("policy", sequences)
        assert_identical(backbone.train().logprobs("policy", sequences)[0], expected)
        assert not torch.allclose(backbone.logprobs("reference", sequences)[0], expected, atol=1e-2)


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


SCORE = "base_model.model.score.weight"
DAMAGE = {
    "no score head": lambda t: {k: v for k, v in t.items() if k != SCORE},
    "made for another model": lambda t: {k: v for k, v in t.items() if ".layers.1." not in k},
    "made for another": lambda t: t | {k.replace(".layers.1.", ".layers.2."): v.clone() for k, v in t.items()},
    "size mismatch for": lambda t: {k: v[:, :-1].contiguous() if "q_proj.lora_A" in k else v for k, v in t.items()},
    "size mismatch for weight": lambda t: t | {SCORE: torch.ones(1, 65)},
    "more than the A and B": lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2, 2)},
}


@pytest.mark.parametrize("message", DAMAGE)
def test_an_adapter_that_does_not_fit_is_refused(saved, load_tiny, message):
    _, folder = saved
    rewrite(folder / "reward", DAMAGE[message])
    with pytest.raises(UserError, match=message) as error:
        load_tiny("qwen2").load_role("reward", folder / "reward")
    assert str(folder / "reward") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_family_is_refused(saved, load_tiny):
    _, folder = saved
    with pytest.raises(UserError, match=r"reward: .*not found in the base model"):
        load_tiny("gpt2").load_role("reward", folder / "reward", allow_other_base=True)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_holds_no_adapter_is_refused(saved, load_tiny, name):
    _, folder = saved
    (folder / "reward" / name).unlink()
    with pytest.raises(UserError, match=f"no {name} there"):
        load_tiny("qwen2").load_role("reward", folder / "reward")


@pytest.mark.parametrize(
    ("modules", "message"),
    [(["query"], "not found in the base model"), (["q_proj", "lm_head"], "head"), (["embed_tokens"], "embedding")],
)
def test_target_modules_that_cannot_be_are_refused(load_tiny, modules, message):
    with pytest.raises(UserError, match=rf"lora\.target_modules: .*{message}"):
        load_tiny("llama").attach("policy", LoraShape(r=4, alpha=8, target_modules=modules))

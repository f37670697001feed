"""Adapters by free names, the heads that go with them, and the bare base."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tiny_models import SHAPE, assert_identical, attach_all, mixed_sequences, randomise, requiring_grad, snapshot
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lorarlhf.backbone.adapters import BASE
from lorarlhf.errors import UserError


@pytest.fixture
def backbone(load_tiny):
    return attach_all(load_tiny("llama")).eval()


# Names


@torch.no_grad()
def test_base_is_the_model_without_any_adapter(load_tiny):
    backbone, sequences = load_tiny("llama"), mixed_sequences()
    bare = backbone.causal_lm(input_ids=sequences.tokens).logits
    attach_all(backbone)
    with backbone.role("policy"):
        with backbone.role(BASE):
            assert_identical(backbone.causal_lm(input_ids=sequences.tokens).logits, bare)
        assert not torch.allclose(backbone.causal_lm(input_ids=sequences.tokens).logits, bare, atol=1e-2)


@torch.no_grad()
def test_a_second_policy_stands_beside_the_first_and_its_reference(backbone):
    sequences = mixed_sequences()
    before = {role: backbone.logprobs(role, sequences)[0] for role in ("policy", "reference")}
    backbone.copy_role("policy", "candidate")
    assert_identical(backbone.logprobs("candidate", sequences)[0], before["policy"])
    randomise(backbone, "candidate")
    assert not torch.allclose(backbone.logprobs("candidate", sequences)[0], before["policy"], atol=1e-2)
    for role, expected in before.items():
        assert_identical(backbone.logprobs(role, sequences)[0], expected)


def test_a_name_that_nothing_bears_does_not_pass_for_the_base(backbone):
    with pytest.raises(KeyError, match="no adapter 'polciy', only"), backbone.role("polciy"):
        pass
    with torch.no_grad(), pytest.raises(KeyError, match="no adapter 'judge'"):
        backbone.scores(mixed_sequences(), role="judge")


@pytest.mark.parametrize("name", [BASE, "layers", "q_proj", "weight", "model", "lora_A", "a.b", "two words", "keys"])
def test_a_name_that_would_be_mistaken_for_something_else_is_refused(backbone, tmp_path, name):
    """PEFT looks for `.name.` in the keys of tensors: beside an adapter called `layers`, none would be saved whole."""
    with pytest.raises(ValueError, match="an adapter cannot be called"):
        backbone.attach(name, SHAPE)
    backbone.save_role("policy", tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(list(backbone.role_parameters("policy")))


def test_a_detached_adapter_leaves_the_others_as_they_are(backbone):
    sequences = mixed_sequences()
    with torch.no_grad():
        expected = backbone.scores(sequences)
        backbone.adapters.detach("reference")
        assert "reference" not in backbone.roles
        assert not list(backbone.role_parameters("reference"))
        assert_identical(backbone.scores(sequences), expected)
        backbone.attach("reference", SHAPE)  # the name is free again
        bare = backbone.logprobs(BASE, sequences)
        assert_identical(backbone.logprobs("reference", sequences), bare)


# Heads


@torch.no_grad()
def test_two_reward_models_on_one_backbone_score_each_as_if_it_were_alone(load_tiny, tmp_path):
    sequences = mixed_sequences()
    alone = {}
    for number, name in enumerate(("reward", "judge")):
        backbone = load_tiny("llama")
        torch.manual_seed(number)
        backbone.attach("reward", SHAPE)
        backbone.reward_head.reset_parameters()
        randomise(backbone, "reward")
        backbone.save_role("reward", tmp_path / name)
        alone[name] = backbone.eval().scores(sequences)
    assert not torch.allclose(alone["reward"], alone["judge"], atol=1e-2)

    both = load_tiny("llama").eval()
    for name in alone:
        both.load_role(name, tmp_path / name, with_head=True)
    for name, expected in alone.items():
        assert_identical(both.scores(sequences, role=name), expected)
    trunk = both.trunk_states(sequences, 0)
    torch.testing.assert_close(both.scores(sequences, trunk, "judge"), alone["judge"])

    randomise(both, "reward")
    assert not torch.allclose(both.scores(sequences), alone["reward"], atol=1e-2)
    assert_identical(both.scores(sequences, role="judge"), alone["judge"])


@torch.no_grad()
def test_a_judge_is_saved_as_the_reward_model_that_it_is(backbone, load_tiny, tmp_path):
    sequences = mixed_sequences()
    backbone.copy_role("reward", "judge")
    randomise(backbone, "judge")
    backbone.save_role("judge", tmp_path)
    other = load_tiny("llama").eval()
    other.load_role("reward", tmp_path)
    assert_identical(other.scores(sequences), backbone.scores(sequences, role="judge"))


def test_a_head_trains_with_its_adapter(backbone, tmp_path):
    backbone.save_role("reward", tmp_path)
    backbone.load_role("judge", tmp_path)
    assert not any("judge" in name for name in requiring_grad(backbone))
    backbone.train_roles("judge")
    trained = requiring_grad(backbone)
    assert "heads.judge.weight" in trained
    assert all(".judge." in name for name in trained)
    frozen = snapshot(backbone.role_parameters("reward"))
    backbone.scores(mixed_sequences(), role="judge").sum().backward()
    assert all(p.grad.any() for p in backbone.role_parameters("judge"))
    assert_identical(snapshot(backbone.role_parameters("reward")), frozen)
    backbone.load_role("judge", tmp_path)
    assert requiring_grad(backbone) == trained


def test_an_adapter_has_a_head_if_its_file_has_one(backbone, tmp_path):
    for role in ("reward", "policy"):
        backbone.save_role(role, tmp_path / role)
    backbone.load_role("judge", tmp_path / "reward")
    assert_identical(backbone.head("judge").weight, backbone.reward_head.weight)
    backbone.load_role("judge", tmp_path / "policy")
    with pytest.raises(KeyError):
        backbone.head("judge")
    assert len(list(backbone.role_parameters("judge"))) == len(list(backbone.role_parameters("policy")))


@pytest.mark.parametrize(("role", "with_head"), [("judge", True), ("reward", False), ("critic", False)])
def test_what_is_to_score_must_have_a_head(backbone, tmp_path, role, with_head):
    backbone.save_role("policy", tmp_path)
    with pytest.raises(UserError, match="no score head"):
        backbone.load_role(role, tmp_path, with_head)


# Families whose layers differ, and mixtures of experts


@pytest.mark.parametrize(
    ("family", "kinds"), [("lfm2", {"conv", "feed_forward"}), ("qwen3_5_text", {"linear_attn", "mlp"})]
)
def test_the_upper_layers_of_a_hybrid_take_adapters_on_every_linear_layer(load_tiny, family, kinds):
    backbone = load_tiny(family, quantization="none")
    linear = {
        name for name, module in backbone.layers.named_modules() if isinstance(module, nn.Linear) and name[0] in "123"
    }
    assert kinds < {name.split(".")[1] for name in linear} > {"self_attn"}
    backbone.attach("reward", SHAPE.model_copy(update={"top_layers": 0.75}))
    assert {name for name, module in backbone.layers.named_modules() if isinstance(module, LoraLayer)} == linear


def test_the_experts_of_a_mixture_take_no_adapter(load_tiny):
    backbone = attach_all(load_tiny("mixtral", quantization="none"))
    assert {name.split(".")[1] for name, m in backbone.layers.named_modules() if isinstance(m, LoraLayer)} == {
        "self_attn"
    }
    backbone.logprobs("policy", mixed_sequences())[0].sum().backward()
    assert all(parameter.grad.any() for parameter in backbone.role_parameters("policy"))


@torch.no_grad()
def test_an_adapter_from_elsewhere_that_has_the_experts_computes_as_in_plain_peft(load_tiny, tiny_model, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model("mixtral"))
    plain = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in plain.named_parameters():
        if ".lora_" in name:
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain.save_pretrained(tmp_path)
    assert any(".experts." in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    backbone, sequences = load_tiny("mixtral", quantization="none"), mixed_sequences()
    bare = backbone.causal_lm(input_ids=sequences.tokens).logits
    backbone.load_role("policy", tmp_path)
    assert_identical(backbone.causal_lm(input_ids=sequences.tokens).logits, bare)
    with backbone.role("policy"):
        logits = backbone.causal_lm(input_ids=sequences.tokens).logits
    assert not torch.allclose(logits, bare, atol=0.1)
    assert_close(logits, plain(input_ids=sequences.tokens).logits, rtol=1e-4, atol=1e-4)

"""One frozen base, four roles on it: what each computes, and what training may and may not touch."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from tiny_models import (
    EOS,
    ROLES,
    SHAPE,
    VOCABULARY,
    assert_identical,
    attach_all,
    expected_trained,
    mixed_sequences,
    randomise,
    requiring_grad,
    rows_of,
    snapshot,
)
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from lorarlhf.backbone.adapters import BASE
from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.logprobs import chunked_logprobs
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import LoraShape


def losses(backbone: SharedBackbone, sequences: TokenBatch) -> Tensor:
    """A policy and a critic loss in which each token counts differently, so that a mix-up shows."""
    logprobs, entropy = backbone.logprobs("policy", sequences, 0.7)
    values = backbone.values(sequences)
    weight = torch.linspace(-1.0, 2.0, logprobs.numel()).reshape(logprobs.shape)
    return (weight * logprobs).sum() - 0.3 * entropy.sum() + (weight * values.square()).sum()


def gradients(backbone: SharedBackbone) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


def frozen_state(backbone: SharedBackbone) -> dict[str, Tensor]:
    """Every tensor that is not the policy's or the critic's: weights, quantisation statistics, buffers, adapters."""
    trained = (".policy.", ".critic.")
    return {key: t.clone() for key, t in backbone.state_dict().items() if not any(part in key for part in trained)}


# The 4-bit base against its twin


def dequantised_twin(backbone: SharedBackbone, twin: SharedBackbone) -> SharedBackbone:
    """Write the weights that the 4-bit model stands for into an unquantised model; both without adapters."""
    count = 0
    for name, module in backbone.causal_lm.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            target = twin.causal_lm.get_submodule(name)
            weight = weight.T if isinstance(target, Conv1D) else weight
            with torch.no_grad():
                assert (weight - target.weight).norm() < 0.15 * target.weight.norm()  # the same matrix, up to 4 bits
                target.weight.copy_(weight)
            count += 1
    assert count
    return twin


def do_nothing(backbone: SharedBackbone, sequences: TokenBatch) -> None:
    pass


def evaluate(backbone: SharedBackbone, sequences: TokenBatch) -> None:
    with torch.no_grad():
        for role in ROLES:
            backbone.logprobs(role, sequences)


def generate(backbone: SharedBackbone, sequences: TokenBatch) -> None:
    with backbone.role("policy"):
        backbone.causal_lm.generate(sequences.tokens[:1, :3], max_new_tokens=3, do_sample=True)


@pytest.mark.parametrize("before", [do_nothing, evaluate, generate])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])  # plain, with biases, with transposed weights
def test_gradients_through_4_bit_equal_those_of_the_dequantised_twin(load_tiny, family, before):
    backbone = load_tiny(family)
    twin = dequantised_twin(backbone, load_tiny(family, quantization="none"))
    sequences = mixed_sequences()
    for model in (backbone, twin):
        torch.manual_seed(1)
        attach_all(model)
        model.eval()
        before(model, sequences)
        model.train()
        losses(model, sequences).backward()
    assert_close(
        backbone.hidden_states("policy", sequences), twin.hidden_states("policy", sequences), rtol=1e-4, atol=1e-4
    )
    expected = gradients(twin)
    assert all(gradient.any() for gradient in expected.values())
    assert_close(gradients(backbone), expected, rtol=1e-4, atol=1e-4)


# What trains


def test_only_the_trained_roles_require_and_receive_gradients(load_tiny):
    backbone = attach_all(load_tiny("llama"))
    assert requiring_grad(backbone) == expected_trained(backbone)
    losses(backbone.train(), mixed_sequences()).backward()
    assert set(gradients(backbone)) == expected_trained(backbone)
    assert all(gradient.any() for gradient in gradients(backbone).values())


def test_nothing_frozen_changes_in_an_optimiser_step(load_tiny):
    backbone = attach_all(load_tiny("llama"))
    before = frozen_state(backbone)
    trained = snapshot(p for p in backbone.parameters() if p.requires_grad)
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        losses(backbone.train(), mixed_sequences()).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert any(".reward." in key for key in before)
    assert any("absmax" in key for key in before)
    assert_identical(frozen_state(backbone), before)
    now = [p for p in backbone.parameters() if p.requires_grad]
    assert all((new != old).any() for new, old in zip(now, trained, strict=True))


def test_switching_roles_keeps_what_trains(load_tiny):
    backbone = attach_all(load_tiny("llama"))
    sequences = mixed_sequences()
    for role in ROLES:
        with backbone.role(role):
            assert requiring_grad(backbone) == expected_trained(backbone)
        backbone.hidden_states(role, sequences)
        assert requiring_grad(backbone) == expected_trained(backbone)
    backbone.scores(sequences)
    backbone.values(sequences)
    assert requiring_grad(backbone) == expected_trained(backbone)


@torch.no_grad()
def test_roles_nest_and_end_with_their_block(load_tiny):
    backbone = load_tiny("llama")
    tokens = mixed_sequences().tokens
    bare = backbone.causal_lm(input_ids=tokens).logits
    for role in ("policy", "critic"):  # PEFT would make the first of them the active one
        backbone.attach(role, SHAPE)
        randomise(backbone, role)

    def out() -> Tensor:
        return backbone.causal_lm(input_ids=tokens).logits

    assert_identical(out(), bare)
    with backbone.role("policy"):
        policy = out()
        assert not torch.allclose(policy, bare, atol=1e-2)
        with backbone.role("critic"):
            assert not torch.allclose(out(), policy, atol=1e-2)
        assert_identical(out(), policy)
        with pytest.raises(KeyError), backbone.role("reward"):
            raise KeyError
        assert_identical(out(), policy)
    assert_identical(out(), bare)


def test_attaching_loading_and_copying_keep_what_trains(load_tiny, tmp_path):
    backbone = load_tiny("llama")
    backbone.attach("policy", SHAPE)
    backbone.attach("critic", SHAPE)
    assert requiring_grad(backbone) == set()
    backbone.save_role("critic", tmp_path)
    backbone.train_roles("policy", "critic")
    backbone.load_role("reward", tmp_path)
    assert requiring_grad(backbone) == expected_trained(backbone)
    backbone.copy_role("policy", "reference")
    assert requiring_grad(backbone) == expected_trained(backbone)
    backbone.attach("policy", LoraShape(r=2, alpha=2, target_modules="all-linear"))
    assert requiring_grad(backbone) == expected_trained(backbone)
    backbone.train_roles()
    assert requiring_grad(backbone) == set()


def layer_calls(backbone: SharedBackbone) -> list[nn.Module]:
    """A list that grows by one whenever a decoder layer computes."""
    calls: list[nn.Module] = []
    for layer in backbone.causal_lm.modules():
        if type(layer).__name__.endswith(("DecoderLayer", "Block")):
            next(layer.children()).register_forward_hook(lambda module, *_: calls.append(module))
    return calls


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_checkpointing_changes_no_gradient_though_roles_switch_before_backward(load_tiny, family, compute_dtype):
    sequences = mixed_sequences()
    found = []
    for checkpointing in (False, True):
        backbone = attach_all(load_tiny(family, compute_dtype=compute_dtype))
        if checkpointing:
            backbone.enable_gradient_checkpointing()
        calls = layer_calls(backbone)
        loss = losses(backbone.train(), sequences)  # policy's forward, critic's forward, then one backward
        before_backward = len(calls)
        with backbone.role("reward"):
            loss.backward()
        assert len(calls) == before_backward * (2 if checkpointing else 1) > 0
        found.append(gradients(backbone))
    assert_identical(found[1], found[0])


# Types


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_every_quantisation_computes_close_to_the_full_model(load_tiny, quantization, compute_dtype):
    backbone = load_tiny("qwen2", quantization=quantization, compute_dtype=compute_dtype)
    full = load_tiny("qwen2", quantization="none", compute_dtype="float32")
    sequences = mixed_sequences()
    with torch.no_grad():
        found, expected = (model.hidden_states("reference", sequences).float() for model in (backbone, full))
    real = torch.arange(found.shape[1]) < sequences.lengths.unsqueeze(1)
    limit = {"nf4": 0.4, "int8": 0.1, "none": 0.05}[quantization]
    assert (found - expected)[real].norm() < limit * expected[real].norm()
    attach_all(backbone)
    losses(backbone.train(), sequences).backward()
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
    assert set(gradients(backbone)) == expected_trained(backbone)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(backbone).values())


@torch.no_grad()
def test_bfloat16_reduces_over_the_vocabulary_in_float32(load_tiny):
    backbone = attach_all(load_tiny("llama", compute_dtype="bfloat16"))
    sequences = mixed_sequences()
    logprobs, _ = backbone.logprobs("policy", sequences)
    hidden = backbone.hidden_states("policy", sequences)
    assert hidden.dtype == torch.bfloat16
    prompt, response = rows_of(sequences)[0]
    logits = backbone.logits(hidden[0, len(prompt) - 1 :]).double()[: len(response)]
    expected = logits.log_softmax(-1)[range(len(response)), response]
    assert_close(logprobs[0], expected.float(), rtol=1e-5, atol=1e-5)


def test_training_is_in_float32_whatever_a_trainer_has_cast_to(load_tiny):
    """TRL casts adapters of quantised models to bfloat16."""
    backbone = load_tiny("llama")
    backbone.attach("policy", SHAPE)
    for parameter in backbone.role_parameters("policy"):
        parameter.data = parameter.data.bfloat16()
    backbone.train_roles("policy")
    assert {parameter.dtype for parameter in backbone.role_parameters("policy")} == {torch.float32}


def test_heads_compute_in_float32_inside_a_trainers_autocast(load_tiny):
    head = load_tiny("llama").reward_head
    hidden = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = head(hidden)
    assert score.dtype == torch.float32
    assert_close(score.double(), hidden.double() @ head.weight.double().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["granite", "cohere", "minicpm3", "gemma2", "bert", "gpt2"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_the_models_own_forward_with_all_it_does_around_its_head(load_tiny, family, compute_dtype):
    backbone = load_tiny(family, quantization="none", compute_dtype=compute_dtype)
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with backbone.autocast():
        expected = backbone.causal_lm(input_ids=tokens, use_cache=False).logits
    hidden = backbone.hidden_states(BASE, TokenBatch.from_lists(tokens.tolist(), [[], []]))
    assert_identical(backbone.logits(hidden), expected)
    assert_identical(backbone.logits(hidden[0]), expected[0])
    if family != "gpt2":  # the head alone would not do
        with backbone.autocast():
            assert not torch.allclose(backbone.causal_lm.get_output_embeddings()(hidden), expected, rtol=0.01)


def test_logits_have_gradients_in_chunks_and_leave_the_model_as_it_was(load_tiny):
    backbone = load_tiny("granite", quantization="none")
    backbone.causal_lm.config.logits_scaling = 0.25
    hidden = torch.randn(5, 32, requires_grad=True)
    targets = torch.arange(5)
    logprobs, _, _ = chunked_logprobs(hidden, targets, backbone.logits, 1.0, chunk=2)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    scores = backbone.causal_lm.lm_head(hidden) / 0.25
    (expected,) = torch.autograd.grad(scores.log_softmax(-1)[range(5), targets].sum(), hidden)
    assert_close(gradient, expected)
    assert not any("forward" in vars(module) for module in backbone.causal_lm.modules())


def test_stop_ids_are_those_of_tokenizer_and_generation_config(load_tiny):
    backbone = load_tiny("llama")
    assert backbone.stop_ids == [EOS]
    backbone.causal_lm.generation_config.eos_token_id = [30, 7]
    assert backbone.stop_ids == [EOS, 7, 30]
    backbone.causal_lm.generation_config.eos_token_id = None
    assert backbone.stop_ids == [EOS]


def test_heads_start_as_the_paper_has_it(load_tiny):
    """Stiennon et al. 2020: normal with variance 1 / (hidden size + 1)."""
    backbone = load_tiny("llama")
    for head in (backbone.reward_head, backbone.value_head):
        assert isinstance(head, nn.Linear)
        assert head.weight.shape == (1, 64)
        assert head.weight.dtype == torch.float32
        assert 0.6 < head.weight.std() * 65**0.5 < 1.4
    assert backbone.causal_lm.config.vocab_size == VOCABULARY

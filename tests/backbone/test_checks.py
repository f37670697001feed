"""What a model is tried on when it is loaded, and what is said of one that fails."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from tiny_models import SHAPE, mixed_sequences
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, GraniteForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from lorarlhf.backbone.checks import check_model
from lorarlhf.backbone.load import load_backbone, load_model_config
from lorarlhf.errors import UserError
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import sample_responses
from lorarlhf.recipe.sections import ModelConfig


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bart", "token by token, beside a padded prompt, it computes something else than in one pass"),
        ("mamba", "token by token, beside a padded prompt, it computes something else than in one pass"),
        ("minimax", "it cannot be sampled from token by token (ValueError: MiniMax uses cache of its own"),
        ("xlm", "it cannot be sampled from token by token (AssertionError)"),
        ("hrm_text", "does not keep its layers in one list"),
    ],
)
def test_a_model_that_would_be_trained_wrongly_is_refused_in_one_line(load_tiny, family, reason):
    with pytest.raises(UserError) as error:
        load_tiny(family, quantization="none")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model.name: ")
    assert str(error.value).endswith("choose another model")


def test_bfloat16_is_no_excuse(load_tiny):
    """Off by a tenth, which is more than rounding comes to."""
    with pytest.raises(UserError, match="token by token, beside a padded prompt, it computes something else"):
        load_tiny("blenderbot", quantization="none", compute_dtype="bfloat16")


def test_a_base_with_nan_is_refused_for_that(load_tiny):
    backbone = load_tiny("llama", quantization="none")
    check_model(backbone)
    with torch.no_grad():
        backbone.layers[0].mlp.down_proj.weight[0] = float("nan")  # attention kernels may hide one
    with pytest.raises(UserError, match="computes NaN or infinity from a few tokens: its weights are damaged"):
        check_model(backbone)


def test_an_encoder_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    config = AutoConfig.from_pretrained(folder)
    config.is_decoder = False
    config.save_pretrained(folder)
    with pytest.raises(UserError, match="BertLMHeadModel cannot be trained: its tokens see those that come after them"):
        load_backbone(ModelConfig(name=str(folder), quantization="none"))


def test_a_model_that_changes_its_logits_in_a_way_of_its_own_is_refused(load_tiny, monkeypatch):
    own = GraniteForCausalLM.forward

    def forward(self, input_ids, **kwargs):
        return CausalLMOutputWithPast(logits=own(self, input_ids, **kwargs).logits * (1 + input_ids.shape[1]))

    monkeypatch.setattr(GraniteForCausalLM, "forward", forward)
    with pytest.raises(UserError, match="GraniteForCausalLM cannot be trained: it computes its logits in a way"):
        load_tiny("granite", quantization="none")


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bloom", "gemma3n_text"])
def test_where_the_middle_of_a_pass_cannot_be_taken_up_every_role_computes_all_layers(
    load_tiny, caplog, family, compute_dtype
):
    with caplog.at_level(logging.WARNING):
        backbone = load_tiny(family, quantization="none", compute_dtype=compute_dtype)
    lines = [record.message for record in caplog.records if "cannot go on from the middle of a pass" in record.message]
    assert len(lines) == 1
    assert not backbone.shares_trunk
    backbone.attach("critic", SHAPE.model_copy(update={"top_layers": 0.5}))
    assert backbone.adapters.first_layer("critic") == 2
    assert backbone.first_layer("critic") == 0
    assert backbone.first_layer("reward") == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_5_text"])
def test_where_it_can_it_is(load_tiny, caplog, family):
    with caplog.at_level(logging.WARNING):
        backbone = load_tiny(family, quantization="none")
    assert backbone.shares_trunk
    assert "middle of a pass" not in caplog.text


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next", "lfm2", "bamba"])
def test_a_hybrid_is_sampled_from_as_it_computes(load_tiny, family):
    """Layers with a state beside layers with keys and values; prompts of several lengths, rows that end early."""
    backbone = load_tiny(family, quantization="none").eval()
    prompts = [[5, 6, 7], [9], [20, 21, 22, 23, 24], [11, 12]]
    rollout = sample_responses(backbone, prompts, uniform_table(len(prompts), 12, 0), 1.0)
    assert len(set(rollout.sequences.response_lengths.tolist())) > 1
    with torch.no_grad():
        logprobs, _ = backbone.logprobs("policy", rollout.sequences)
    assert_close(rollout.logprobs, logprobs, rtol=1e-3, atol=1e-3)


# Text and images


@pytest.mark.parametrize("family", ["gemma3", "got_ocr2"])
def test_of_text_and_images_the_text_model_alone_takes_adapters(load_tiny, family):
    backbone = load_tiny(family, quantization="none")
    backbone.attach("policy", SHAPE)
    backbone.attach("critic", SHAPE.model_copy(update={"top_layers": 0.5}))
    names = [name for name, _ in backbone.causal_lm.named_parameters() if ".lora_" in name]
    assert names
    assert all(".language_model.layers." in name for name in names)
    assert backbone.shares_trunk
    assert backbone.first_layer("critic") == len(backbone.layers) // 2
    backbone.train_roles("policy", "critic")
    backbone.train()
    sequences = mixed_sequences()
    (backbone.logprobs("policy", sequences)[0].sum() + backbone.values(sequences).sum()).backward()
    assert all(p.grad is not None for role in ("policy", "critic") for p in backbone.role_parameters(role))


def test_named_modules_of_text_and_images_are_those_of_the_text_model_too(load_tiny):
    backbone = load_tiny("gemma3", quantization="none")
    backbone.attach("policy", SHAPE.model_copy(update={"target_modules": ["q_proj", "v_proj"]}))
    names = [name for name, _ in backbone.causal_lm.named_parameters() if ".lora_" in name]
    assert len(names) == 2 * 2 * len(backbone.layers)
    assert all(".language_model.layers." in name for name in names)


def test_dropout_is_off_in_both_towers(tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model("gemma3"))
    config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.1
    config.save_pretrained(tmp_path)
    loaded = load_model_config(ModelConfig(name=str(tmp_path)))
    assert loaded.text_config.attention_dropout == loaded.vision_config.attention_dropout == 0.0


def test_an_adapter_of_the_text_model_comes_back_from_its_file(load_tiny, tmp_path):
    backbone, other = load_tiny("gemma3", quantization="none"), load_tiny("gemma3", quantization="none")
    backbone.attach("policy", SHAPE)
    with torch.no_grad():
        for parameter in backbone.role_parameters("policy"):
            nn.init.normal_(parameter, std=0.1)
        backbone.save_role("policy", tmp_path)
        other.load_role("policy", tmp_path)
        sequences = mixed_sequences()
        assert_close(other.logprobs("policy", sequences)[0], backbone.logprobs("policy", sequences)[0])

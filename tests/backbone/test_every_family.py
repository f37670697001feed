"""A tiny model of every causal family in transformers' mapping, and what docs/families.md says of it."""

from __future__ import annotations

import pytest
from every_family import EVERY_FAMILY, NOT_TRIED
from family_outcomes import outcome, table
from tiny_models import attach_all, make_model, mixed_sequences

from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import ModelConfig

# Some of each kind: plain, mixtures, hybrids, shared keys, of images too, without sharing, refused.
SPREAD = ("cohere2", "ctrl", "gemma4_text", "llama4", "nemotron_h", "phimoe", "qwen3_5", "blt", "bart", "zamba2")

# Refused when they are loaded in these types, though they work in float32.
REFUSED = {
    # Multi-head latent attention projects states of heads, and bitsandbytes' int8 on a CPU takes rows of tokens alone.
    "int8": "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa "
    "hy_v4 kimi_linear minicpm3 youtu",
    "nf4": "nemotron qwen4_exp qwen4_exp_text",  # a LayerNorm of two types; a cache that rounds otherwise
    "none": "dbrx",  # adds float32 to bfloat16
}
# Of random weights the states of a token can round to one value, whose standard deviation has no gradient.
ROUNDED_AWAY = ("gemma3n_text",)


@pytest.mark.parametrize(
    "family",
    [family if family in SPREAD else pytest.param(family, marks=pytest.mark.families) for family in EVERY_FAMILY],
)
def test_the_page_tells_what_becomes_of_it(family, tmp_path):
    assert outcome(family, tmp_path) == table().get(family), (
        "PYTHONPATH=. python tests/family_outcomes.py writes it anew"
    )


def test_the_page_tells_of_every_family():
    assert table().keys() == set(EVERY_FAMILY)
    assert len(EVERY_FAMILY) - len(NOT_TRIED) > 100


@pytest.mark.families
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("family", [family for family, said in table().items() if said.startswith("works")])
def test_what_works_does_so_in_bfloat16_under_the_rules_of_cuda(family, quantization, tmp_path, cuda_autocast):
    config = ModelConfig(name=str(make_model(family, tmp_path)), quantization=quantization, compute_dtype="bfloat16")
    if family in REFUSED[quantization].split():
        with pytest.raises(UserError, match=r"model\.name: \w+ cannot be trained: "):
            load_backbone(config)
        return
    try:
        backbone = load_backbone(config)
    except UserError as error:
        if quantization == "none" or "could be held in" not in str(error):
            raise
        return
    attach_all(backbone).train()
    sequences = mixed_sequences()
    logprobs, entropy = backbone.logprobs("policy", sequences, 0.7)
    (logprobs.sum() + entropy.sum() + backbone.values(sequences).sum()).backward()
    gradients = [p.grad for role in ("policy", "critic") for p in backbone.role_parameters(role) if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients) == (family not in ROUNDED_AWAY)
    assert any(gradient.any() for gradient in gradients)

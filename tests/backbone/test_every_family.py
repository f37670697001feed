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
    name = str(make_model(family, tmp_path))
    try:
        backbone = load_backbone(ModelConfig(name=name, quantization=quantization, compute_dtype="bfloat16"))
    except UserError as error:
        if quantization == "none" or "could be held in" not in str(error):
            raise
        return
    attach_all(backbone).train()
    sequences = mixed_sequences()
    logprobs, entropy = backbone.logprobs("policy", sequences, 0.7)
    (logprobs.sum() + entropy.sum() + backbone.values(sequences).sum()).backward()
    gradients = [p.grad for role in ("policy", "critic") for p in backbone.role_parameters(role) if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)

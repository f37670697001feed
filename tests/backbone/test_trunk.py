"""Going on from the middle of a model, in every family."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, mixed_sequences, randomise
from torch.testing import assert_close

from lorarlhf.recipe.sections import LoraShape

TOP_HALF = LoraShape(r=4, alpha=8, target_modules="all-linear", top_layers=0.5)


@pytest.fixture
def halves(load_tiny):
    def load(family, **options):
        backbone = load_tiny(family, **options)
        backbone.attach("critic", TOP_HALF)
        backbone.attach("policy", TOP_HALF.model_copy(update={"top_layers": 1.0}))
        randomise(backbone, "critic", "policy")
        backbone.train_roles("critic")
        return backbone

    return load


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_from_the_middle_equal_those_from_the_tokens(halves, family, checkpointing):
    backbone, sequences = halves(family), mixed_sequences()
    if checkpointing:
        backbone.enable_gradient_checkpointing()
    backbone.train()
    assert backbone.first_layer("critic") == 1
    assert backbone.first_layer("policy") == 0
    with torch.no_grad():
        trunk = backbone.trunk_states(sequences, 1)

    def run(below):
        backbone.zero_grad()
        values = backbone.values(sequences, below)
        values.square().sum().backward()
        return [values, *(p.grad for p in backbone.role_parameters("critic"))]

    whole, resumed = run(None), run(trunk)
    assert all(tensor.abs().max() > 0 for tensor in whole)
    for ours, expected in zip(resumed, whole, strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert_close(run(None), whole, rtol=0, atol=0)  # nothing stays changed


def test_the_layers_below_are_not_computed_again(halves):
    backbone, sequences = halves("llama"), mixed_sequences()
    with torch.no_grad():
        trunk = backbone.trunk_states(sequences, 1)
        computed = []
        for index, layer in enumerate(backbone.layers):
            layer.self_attn.register_forward_pre_hook(lambda *_, index=index: computed.append(index))
        backbone.values(sequences, trunk)
        assert computed == [1]
        backbone.trunk_states(sequences, 1)
        assert computed == [1, 0]


def test_rows_and_widths_of_the_states(halves):
    backbone, sequences = halves("llama"), mixed_sequences()
    rows = torch.tensor([3, 1])
    with torch.no_grad():
        expected = backbone.values(sequences)
        some = sequences.select(rows)
        trunk = backbone.trunk_states(sequences, 1).select(rows, some.tokens.shape[1])
        values = backbone.values(some, trunk)
    assert_close(values, expected[rows, : values.shape[1]])


def test_an_error_inside_leaves_the_model_whole(halves):
    backbone, sequences = halves("llama"), mixed_sequences()
    with torch.no_grad():
        before = backbone.values(sequences)
        trunk = backbone.trunk_states(sequences, 1)
        handle = backbone.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backbone.values(sequences, trunk)
        handle.remove()
        assert_close(backbone.values(sequences), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3"])
def test_an_adapter_on_the_top_layers_survives_a_file_and_plain_peft(halves, load_tiny, tmp_path, family):
    backbone, sequences = halves(family), mixed_sequences()
    backbone.save_role("critic", tmp_path)
    other = load_tiny(family)
    other.load_role("critic", tmp_path)
    assert other.first_layer("critic") == 1
    with torch.no_grad():
        assert_close(other.values(sequences), backbone.values(sequences), rtol=0, atol=0)


def test_named_modules_keep_to_the_top_too(load_tiny):
    backbone = load_tiny("llama")
    backbone.attach("reward", LoraShape(r=2, alpha=2, target_modules=["q_proj"], top_layers=0.5))
    assert backbone.first_layer("reward") == 1
    assert len(list(backbone.role_parameters("reward"))) == 3  # A, B and the head
    assert backbone.first_layer("policy") == len(backbone.layers)  # has none

"""A cache of fixed size against one that grows, and the bookkeeping around a captured step."""

import pytest
import torch
from tiny_models import EOS, FAMILIES, SHAPE, VOCABULARY, randomise, rows_of
from torch.testing import assert_close

from lorarlhf.generation import sample as rollout_module
from lorarlhf.generation.decode import GrowingDecoder, StaticDecoder, can_be_static, make_decoder
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import sample_responses

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [4], [12, EOS, 13], [20, 21], [22, 4, 5, 6, 7], [30, 31, 32]] * 3
SLIDING = {"mistral", "gemma2", "gemma3_text", "phi3"}  # in `tiny_models` their windows are shorter than the rows


@pytest.fixture
def with_policy(load_tiny):
    def load(family):
        backbone = load_tiny(family)
        backbone.attach("policy", SHAPE)
        randomise(backbone, "policy")
        backbone.causal_lm.generation_config.eos_token_id = list(range(EOS, VOCABULARY, 4))
        return backbone.eval()

    return load


class Replayed(StaticDecoder):
    """A "graph" that, as a real one, always runs on the tensors it was captured with and writes to the same output."""

    captures = 0

    def __init__(self, *args):
        super().__init__(*args)
        self.capturing = True

    def _capture(self):
        type(self).captures += 1
        tokens, positions, attention, cache = self.tokens, self.positions, self.attention, self.cache
        keys = [layer.keys for layer in cache.layers]
        self.logits = torch.zeros(len(tokens), VOCABULARY)
        decoder = self

        class Graph:
            def replay(self):
                assert decoder.tokens is tokens
                assert decoder.positions is positions
                assert decoder.attention is attention
                assert all(layer.keys is key for layer, key in zip(cache.layers, keys, strict=True))
                decoder.logits.copy_(decoder._forward(tokens, positions))

        self.graph = Graph()


@pytest.mark.parametrize("decoder", [StaticDecoder, Replayed])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - SLIDING))
def test_a_static_cache_gives_what_a_growing_one_does(with_policy, monkeypatch, family, decoder):
    backbone = with_policy(family)
    assert can_be_static(backbone)
    rollouts, rows_left = [], []
    for kind in (GrowingDecoder, decoder):

        def make(*args, kind=kind):
            made = kind(*args)
            keep = made.keep
            made.keep = lambda rows: rows_left.append(len(rows)) or keep(rows)
            return made

        monkeypatch.setattr(rollout_module, "make_decoder", make)
        rollouts.append(sample_responses(backbone, PROMPTS, uniform_table(len(PROMPTS), 16, 0), 1.0))
    growing, static = rollouts
    assert len(rows_left) > 4  # some leave one by one
    assert min(rows_left) <= len(PROMPTS) // 2  # and the batch is made smaller
    assert rows_of(static.sequences) == rows_of(growing.sequences)
    assert_close(static.logprobs, growing.logprobs, rtol=1e-4, atol=1e-5)
    assert_close(static.entropy, growing.entropy, rtol=1e-4, atol=1e-5)


def test_a_graph_serves_until_half_the_rows_have_ended(with_policy):
    backbone = with_policy("llama")
    Replayed.captures = 0
    with torch.no_grad(), backbone.role("policy"):
        decoder = Replayed(backbone, PROMPTS[:8], 12)
        decoder.start()
        for kept, captures in ((8, 1), (7, 1), (5, 1), (4, 2), (3, 2), (2, 3)):
            decoder.keep(torch.arange(kept))
            assert decoder.step(torch.full((kept,), 7)).shape == (kept, VOCABULARY)
            assert Replayed.captures == captures


@pytest.mark.parametrize("family", sorted(SLIDING))
def test_a_sliding_window_needs_a_cache_that_grows(with_policy, family):
    assert not can_be_static(with_policy(family))


def test_a_cpu_captures_nothing(with_policy):
    assert type(make_decoder(with_policy("llama"), PROMPTS, 4)) is GrowingDecoder


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_step_gives_what_a_plain_one_does(with_policy, caplog):
    backbone = with_policy("llama")
    with torch.no_grad(), backbone.role("policy"), backbone.autocast():
        plain, captured = GrowingDecoder(backbone, PROMPTS, 12), StaticDecoder(backbone, PROMPTS, 12)
        assert_close(captured.start(), plain.start(), rtol=1e-3, atol=1e-3)
        for step in range(11):
            tokens = torch.full((len(PROMPTS),), 5 + step, device=backbone.device)
            assert_close(captured.step(tokens), plain.step(tokens), rtol=1e-3, atol=1e-3)
    assert captured.graph is not None
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_padding_the_empty_part_of_the_cache_is_not_looked_at(with_policy, family):
    """Libraries leave a mask out where nothing is padded; a static cache still needs one."""
    backbone = with_policy(family)
    prompts = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    with torch.no_grad(), backbone.role("policy"):
        growing, static = GrowingDecoder(backbone, prompts, 9), StaticDecoder(backbone, prompts, 9)
        assert_close(static.start(), growing.start(), rtol=1e-4, atol=1e-5)
        for step in range(8):
            tokens = torch.tensor([5, 6, 7]) + step
            assert_close(static.step(tokens), growing.step(tokens), rtol=1e-4, atol=1e-5)

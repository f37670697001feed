"""A cache of fixed size against one that grows, and the bookkeeping around a captured step."""

import pytest
import torch
from tiny_models import EOS, FAMILIES, SHAPE, VOCABULARY, randomise, rows_of
from torch.testing import assert_close
from torch.torch_version import TorchVersion

from lorarlhf.generation import decode, prefill
from lorarlhf.generation import sample as rollout_module
from lorarlhf.generation.capture import Captured, CaptureError
from lorarlhf.generation.decode import GrowingDecoder, StaticDecoder, capture_fault, make_decoder, static_cache
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import sample_responses

BEGINNINGS = ([5, 6, 7, 8, 9, 10], [], [12, EOS], [20], [22, 4, 5, 6], [30, 31])
PROMPTS = [[*beginning, last] for last in (11, 13, 14) for beginning in BEGINNINGS]
SLIDING = {"mistral", "gemma2", "gemma3_text", "phi3"}  # in `tiny_models` their windows are of four tokens


@pytest.fixture
def with_policy(load_tiny):
    def load(family, window=None, **options):
        backbone = load_tiny(family, **options)
        if family in SLIDING and window:
            set_window(backbone, window)
        backbone.attach("policy", SHAPE)
        randomise(backbone, "policy")
        backbone.causal_lm.generation_config.eos_token_id = list(range(EOS, VOCABULARY, 4))
        return backbone.eval()

    return load


def set_window(backbone, window):
    """Of attention and of caches; of tiny models both read it when they compute."""
    backbone.causal_lm.config.sliding_window = window
    for module in backbone.causal_lm.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = window


@pytest.fixture
def on_cuda(monkeypatch):
    """Decoders that are only named; the device is asked for nothing else."""
    for kind in (GrowingDecoder, StaticDecoder):
        monkeypatch.setattr(decode, kind.__name__, Named(kind))


class Named:
    failure = None

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, *args):
        return self.kind


def made_on_cuda(backbone):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone), "device", torch.device("cuda"))
        return make_decoder(backbone, PROMPTS, 16)


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
        output = torch.zeros(len(tokens), VOCABULARY)
        decoder = self

        class Graph:
            def replay(self):
                assert decoder.tokens is tokens
                assert decoder.positions is positions
                assert decoder.attention is attention
                assert all(layer.keys is key for layer, key in zip(cache.layers, keys, strict=True))
                output.copy_(decoder._forward())

        return Captured(Graph(), output)


def sampled(backbone, monkeypatch, kind, rows_left=None):
    """A rollout decoded by one kind of decoder; `rows_left` is told how many rows go on each time some end."""

    def make(*args):
        made = kind(*args)
        real = made.keep

        def keep(rows):
            if rows_left is not None:
                rows_left.append(len(rows))
            real(rows)

        made.keep = keep
        return made

    monkeypatch.setattr(rollout_module, "make_decoder", make)
    return sample_responses(backbone, PROMPTS, uniform_table(len(PROMPTS), 16, 0), 1.0)


def assert_same(rollout, expected):
    assert rows_of(rollout.sequences) == rows_of(expected.sequences)
    assert_close(rollout.logprobs, expected.logprobs, rtol=1e-4, atol=1e-5)
    assert_close(rollout.entropy, expected.entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", [StaticDecoder, Replayed])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_static_cache_gives_what_a_growing_one_does(with_policy, monkeypatch, family, decoder):
    """Those with a sliding window as well, where prompt and response fit into it."""
    backbone = with_policy(family, window=23)
    rows_left = []
    growing = sampled(backbone, monkeypatch, GrowingDecoder)
    static = sampled(backbone, monkeypatch, decoder, rows_left)
    assert len(rows_left) > 2  # some leave one by one
    assert min(rows_left) <= len(PROMPTS) // 2  # and the batch is made smaller
    assert_same(static, growing)


@pytest.mark.parametrize("tokens", [1, 14, 70])
@pytest.mark.parametrize("decoder", [GrowingDecoder, StaticDecoder])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_prompts_computed_in_groups_are_answered_the_same(with_policy, monkeypatch, family, decoder, tokens):
    """Of one row, of two, and of ten and the rest; the windows of a growing cache may be shorter than the prompts."""
    backbone = with_policy(family, window=4 if decoder is GrowingDecoder else 23)
    at_once = sampled(backbone, monkeypatch, GrowingDecoder)
    passes, real = [], backbone.cached_states

    def cached_states(inputs, attention, *args):
        if inputs.shape[1] > 1:
            passes.append(len(inputs))
            assert attention.shape == inputs.shape  # the mask of the prompts alone
        return real(inputs, attention, *args)

    monkeypatch.setattr(backbone, "cached_states", cached_states)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", tokens)
    assert_same(sampled(backbone, monkeypatch, decoder), at_once)
    assert passes == {1: [1] * 18, 14: [2] * 9, 70: [10, 8]}[tokens]


@pytest.mark.parametrize("tokens", [14, 4096])
@pytest.mark.parametrize(
    ("decoder", "family"),
    [(GrowingDecoder, "llama"), (GrowingDecoder, "gemma3_text"), (GrowingDecoder, "lfm2"), (StaticDecoder, "llama")],
)
def test_a_prompt_that_comes_several_times_is_computed_once(with_policy, monkeypatch, family, decoder, tokens):
    """Not necessarily side by side: each row goes on from a copy, as if it had been computed by itself."""
    backbone = with_policy(family, window=4 if decoder is GrowingDecoder else 23)
    prompts = [PROMPTS[i] for i in (0, 1, 0, 2, 2, 1, 0)]
    uniforms = uniform_table(len(prompts), 16, 0)
    monkeypatch.setattr(rollout_module, "make_decoder", decoder)
    alone = [sample_responses(backbone, [prompt], uniforms[i : i + 1], 1.0) for i, prompt in enumerate(prompts)]
    rows, real = [], backbone.cached_states

    def cached_states(inputs, *args):
        if inputs.shape[1] > 1:
            rows.append(len(inputs))
        return real(inputs, *args)

    monkeypatch.setattr(backbone, "cached_states", cached_states)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", tokens)
    together = sample_responses(backbone, prompts, uniforms, 1.0)
    assert sum(rows) == 3
    assert rows_of(together.sequences) == [rows_of(one.sequences)[0] for one in alone]
    for row, one in enumerate(alone):
        assert_close(together.logprobs[row, : one.logprobs.shape[1]], one.logprobs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_next", "lfm2"])
def test_what_is_no_list_of_keys_and_values_is_computed_at_once(with_policy, monkeypatch, family):
    backbone = with_policy(family)
    expected = sampled(backbone, monkeypatch, GrowingDecoder)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", 14)
    assert_same(sampled(backbone, monkeypatch, GrowingDecoder), expected)
    assert static_cache(backbone, 23) is None


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
def test_a_window_shorter_than_prompt_and_response_needs_a_cache_that_grows(with_policy, family):
    backbone = with_policy(family, window=23)
    assert static_cache(backbone, 23) is not None
    assert capture_fault(backbone, 23) is None
    assert static_cache(backbone, 24) is None
    assert "a sliding window is shorter" in capture_fault(backbone, 24)


def test_a_cpu_captures_nothing(with_policy):
    assert type(make_decoder(with_policy("llama"), PROMPTS, 4)) is GrowingDecoder


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (None, StaticDecoder),
        (("causal_lm.config._attn_implementation", "eager"), StaticDecoder),
        (("causal_lm.config._attn_implementation", "flash_attention_2"), GrowingDecoder),
        (("causal_lm.config._attn_implementation", "kernels-community/flash-attn3"), GrowingDecoder),
        (("causal_lm.config._attn_implementation", "flex_attention"), GrowingDecoder),
        (("causal_lm.is_loaded_in_8bit", True), GrowingDecoder),
        (("causal_lm._can_compile_fullgraph", False), GrowingDecoder),
    ],
)
def test_which_decoder_a_gpu_gets(with_policy, on_cuda, monkeypatch, change, kind):
    backbone = with_policy("llama")
    if change:
        path, value = change
        *owners, name = path.split(".")
        owner = backbone
        for part in owners:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, name, value, raising=False)
    assert made_on_cuda(backbone) is kind


@pytest.mark.parametrize(("version", "kind"), [("2.11.1", GrowingDecoder), ("2.12.0", StaticDecoder)])
def test_a_torch_that_a_failed_capture_breaks_captures_nothing(with_policy, on_cuda, monkeypatch, version, kind):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert made_on_cuda(with_policy("llama")) is kind


def test_a_capture_that_fails_is_not_tried_again_in_this_process(with_policy, monkeypatch, caplog):
    backbone = with_policy("llama")
    tries = []

    def fail(work, rewind):
        tries.append(work)
        work()  # has moved the cache on
        rewind()
        raise CaptureError("CUDA error: operation not permitted when stream is capturing")

    class Capturing(StaticDecoder):
        def __init__(self, *args):
            super().__init__(*args)
            self.capturing = True

    monkeypatch.setattr(StaticDecoder, "failure", None)  # and what it is set to is taken back
    monkeypatch.setattr(decode, "capture", fail)
    expected = sampled(backbone, monkeypatch, GrowingDecoder)
    assert_same(sampled(backbone, monkeypatch, Capturing), expected)
    assert len(tries) == 1
    assert caplog.text.count("decoding without a CUDA graph from here on") == 1
    assert capture_fault(backbone, 23) == "CUDA error: operation not permitted when stream is capturing"


def test_int8_as_it_is_loaded_is_never_captured(with_policy, on_cuda):
    assert made_on_cuda(with_policy("llama", quantization="int8")) is GrowingDecoder


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_step_gives_what_a_plain_one_does(with_policy, caplog):
    backbone = with_policy("llama")
    with torch.no_grad(), backbone.role("policy"), backbone.autocast():
        plain, captured = GrowingDecoder(backbone, PROMPTS, 12), StaticDecoder(backbone, PROMPTS, 12)
        assert_close(captured.start(), plain.start(), rtol=1e-3, atol=1e-3)
        for step in range(11):
            tokens = torch.full((len(PROMPTS),), 5 + step, device=backbone.device)
            assert_close(captured.step(tokens), plain.step(tokens), rtol=1e-3, atol=1e-3)
    assert captured.captured is not None
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

"""What a shadow allocates against what the real model allocates, as torch's profiler sees it."""

from __future__ import annotations

import functools
import gc

import bitsandbytes as bnb
import pytest
import torch
from tiny_models import FAMILIES, SHAPE, VOCABULARY

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_model_config
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import sample_responses
from lorarlhf.planner import shadow_steps
from lorarlhf.planner.shadow import Allocations, ShadowBackbone, shadow_model, stored_bytes
from lorarlhf.recipe.sections import ModelConfig

PROMPT, RESPONSE = 40, 56


def real_peak(work) -> int:
    """Most bytes alive at a time that `work` has allocated on the CPU."""
    gc.collect()  # else models of earlier tests, which lie about in circles, may be freed inside and be counted as less
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def shadow_peak(shadow, work) -> int:
    with Allocations([*shadow.parameters(), *shadow.buffers()], VOCABULARY) as allocations:
        work(shadow, allocations)
    shadow.zero_grad()
    return allocations.peak.total()


@pytest.fixture
def both(load_tiny, tiny_model):
    """`both(family, **ModelConfig)`: a loaded backbone and its shadow, each training policy and critic."""

    def make(family, checkpointing=False, **options):
        config = ModelConfig(name=str(tiny_model(family)), **{"compute_dtype": "float32", **options})
        real, shadow = load_tiny(family, **options), ShadowBackbone(config, load_model_config(config), "cpu")
        for backbone in (real, shadow):
            for role in ("policy", "reward", "critic"):
                backbone.attach(role, SHAPE)
            backbone.train_roles("policy", "critic", "reward")
            if checkpointing:
                backbone.enable_gradient_checkpointing()
        return real, shadow

    return make


def full_sequences(rows) -> TokenBatch:
    tokens = torch.randint(4, VOCABULARY, (rows, PROMPT + RESPONSE))
    return TokenBatch(tokens, torch.full((rows,), PROMPT), torch.full((rows,), RESPONSE))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"compute_dtype": "bfloat16"}),
        ("llama", {"quantization": "none"}),
        ("llama", {"quantization": "int8"}),
        ("qwen2", {}),
        ("gemma2", {}),
        ("gpt2", {}),
    ],
)
def test_a_step_of_policy_and_critic_allocates_what_its_shadow_does(both, family, options, checkpointing):
    real, shadow = both(family, checkpointing, **options)
    sizes = {"rows": 6, "prompt": PROMPT, "response": RESPONSE, "again": False}
    sequences = full_sequences(6)
    for role, of_shadow in [
        ("policy", functools.partial(shadow_steps.policy_step, **sizes, entropy=False)),
        ("critic", functools.partial(shadow_steps.critic_step, **sizes)),
    ]:

        def step(role=role):
            real.train()
            result = real.logprobs("policy", sequences, 1.0, False)[0] if role == "policy" else real.values(sequences)
            result.sum().backward()

        step()  # what is made once and stays
        real.zero_grad()
        assert shadow_peak(shadow, of_shadow) == pytest.approx(real_peak(step), rel=0.05)


def test_a_rollout_allocates_what_its_shadow_does(both):
    real, shadow = both("qwen2")
    real.eval()
    real.causal_lm.generation_config.eos_token_id = None
    real.tokenizer.eos_token = None  # nothing ends a response
    prompts = [[token] * PROMPT for token in range(5, 13)]  # all different, as the plan takes them to be

    def rollout():
        sample_responses(real, prompts, uniform_table(len(prompts), RESPONSE, 0), 1.0)

    rollout()
    planned = shadow_peak(shadow, functools.partial(shadow_steps.decode, rows=8, prompt=PROMPT, response=RESPONSE))
    assert planned == pytest.approx(real_peak(rollout), rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_after_prompts_take_no_copy_of_the_head_a_row(load_tiny, dtype):
    backbone = load_tiny("llama", compute_dtype=dtype)
    head = backbone.causal_lm.get_output_embeddings().weight
    hidden = torch.randn(32, 5, head.shape[1]).to(backbone.compute_dtype)
    with torch.no_grad():
        assert real_peak(lambda: backbone.logits(hidden[:, -1])) < 16 * head.nbytes


@pytest.mark.parametrize(
    "options",
    [
        {"double_quant": True},
        {"double_quant": False, "compute_dtype": "bfloat16"},
        {"quantize_head": True},
        {"quantization": "int8"},
        {"quantization": "none"},
        {"quantization": "none", "compute_dtype": "bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["qwen2", "opt"])
def test_weights_are_counted_to_the_byte(load_tiny, tiny_model, family, options):
    config = ModelConfig(name=str(tiny_model(family)), **{"compute_dtype": "float32", **options})
    counted = sum(stored_bytes(shadow_model(config, load_model_config(config), "cpu"), config).values())
    loaded = load_tiny(family, **options).causal_lm
    real = sum(tensor.nbytes for tensor in {id(t): t for t in [*loaded.parameters(), *loaded.buffers()]}.values())
    for module in loaded.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            real += state.absmax.nbytes + state.code.nbytes
            if state.nested:
                real += state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes
        elif isinstance(module, bnb.nn.Linear8bitLt):
            real += (module.weight.SCB if module.weight.SCB is not None else module.state.SCB).nbytes
    assert counted == real


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_run_without_weights(tiny_model, family):
    config = ModelConfig(name=str(tiny_model(family)))
    shadow = ShadowBackbone(config, load_model_config(config), "cuda")
    shadow.attach("policy", SHAPE)
    shadow.train_roles("policy")
    sizes = {"rows": 2, "prompt": 5, "response": 3}
    assert shadow_peak(shadow, functools.partial(shadow_steps.policy_step, **sizes, again=True, entropy=True)) > 0
    assert shadow_peak(shadow, functools.partial(shadow_steps.decode, **sizes)) > 0
    assert shadow_peak(shadow, functools.partial(shadow_steps.sft_step, rows=2, length=8, again=False)) > 0


def test_what_is_let_go_is_not_counted():
    with Allocations([], vocabulary=7) as allocations:
        kept = torch.empty(1000, device="meta")
        for _ in range(3):
            torch.empty(2000, 7, dtype=torch.bfloat16, device="meta")
        torch.empty(10, device="meta")
        view = kept.view(10, 100)
    assert dict(allocations.peak) == {"activations": 4096, "logits": 28160}  # multiples of 512
    assert allocations.now == {"activations": 4096, "logits": 0}
    del kept, view
    assert allocations.now.total() == 0

"""Decoding: what is sampled, in which order, from which distribution, and with which log-probabilities."""

import pytest
import torch
from tiny_models import EOS, PAD, SHAPE, VOCABULARY, attach_all, randomise, rows_of
from torch.testing import assert_close

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.generation import sample as rollout_module
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import Rollout, response_texts, sample_responses

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [4], [PAD, 12, EOS, 13], [20, 21], [22, 4, 5, 6, 7], [30, 31, 32]]
STOPS = list(range(EOS, VOCABULARY, 5))
NEARLY_GREEDY = 1e-4


@pytest.fixture
def with_policy(load_tiny):
    def load(family: str, **options) -> SharedBackbone:
        backbone = load_tiny(family, **options)
        backbone.attach("policy", SHAPE)
        randomise(backbone, "policy")
        return backbone.eval()

    return load


def sample(backbone: SharedBackbone, prompts, length=12, temperature=1.0, seed=0, **options) -> Rollout:
    return sample_responses(backbone, prompts, uniform_table(len(prompts), length, seed), temperature, **options)


def responses_of(rollout: Rollout) -> list[list[int]]:
    return [response for _, response in rows_of(rollout.sequences)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "phi3", "opt", "gpt2"])
def test_recorded_logprobs_are_those_of_the_finished_sequences(with_policy, family, temperature):
    """Prompts are left-padded while decoding, and rows leave the batch as they end; windows are shorter than rows."""
    backbone = with_policy(family)
    backbone.causal_lm.generation_config.eos_token_id = STOPS
    rollout = sample(backbone, PROMPTS * 3, temperature=temperature)
    lengths = set(rollout.sequences.response_lengths.tolist())
    assert len(lengths) > 1  # some leave the batch early
    with torch.no_grad():
        expected, _ = backbone.logprobs("policy", rollout.sequences, temperature)
    assert_close(rollout.logprobs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_neox", "opt"])
def test_cold_sampling_equals_greedy_generation_row_by_row(with_policy, family):
    backbone = with_policy(family)
    free = responses_of(sample(backbone, PROMPTS, temperature=NEARLY_GREEDY))
    longest = max(range(len(free)), key=lambda row: len(free[row]))
    stops = [EOS, free[longest][3]]  # so that one row at least leaves the batch early
    backbone.causal_lm.generation_config.eos_token_id = stops
    rollout = sample(backbone, PROMPTS, temperature=NEARLY_GREEDY)
    expected = []
    for prompt in PROMPTS:
        with backbone.role("policy"):
            ids = torch.tensor([prompt])
            output = backbone.causal_lm.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=PAD
            )
        expected.append(output[0, len(prompt) :].tolist())
    assert responses_of(rollout) == expected
    assert len(expected[longest]) <= 4
    assert rollout.finished.tolist() == [response[-1] in stops for response in expected]


def test_cold_sampling_equals_greedy_generation_of_the_demo_model(demo_backbone):
    backbone = demo_backbone.eval()
    turns = ["Hello. Are the muffins any good?", "Are the lemons cheap?", "Hello."]
    prompts = [
        backbone.tokenizer.apply_chat_template(
            [{"role": "user", "content": turn}], add_generation_prompt=True, return_dict=False
        )
        for turn in turns
    ]
    rollout = sample(backbone, prompts, length=24, temperature=NEARLY_GREEDY, role="reference")
    for prompt, response, text in zip(prompts, responses_of(rollout), response_texts(backbone, rollout), strict=True):
        ids = torch.tensor([prompt])
        output = backbone.causal_lm.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
        assert response == output[0, len(prompt) :].tolist()
        assert text == backbone.tokenizer.decode(response, skip_special_tokens=True)
        assert not set(text) & set("<|>")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_tokens_follow_the_softmax(with_policy, temperature):
    """Pearson's chi-squared statistic of 4,000 draws; its mean is the number of cells less 1."""
    backbone = with_policy("llama")
    prompt, n = [5, 6, 7, 8], 4000
    rollout = sample(backbone, [prompt] * n, length=1, temperature=temperature)
    with torch.no_grad(), backbone.role("policy"):
        logits = backbone.causal_lm(torch.tensor([prompt])).logits[0, -1].double()
    probabilities = torch.softmax(logits / temperature, 0)
    drawn = rollout.sequences.tokens[:, len(prompt)]
    counts = torch.bincount(drawn, minlength=VOCABULARY).double()
    common = n * probabilities >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([n * probabilities[common], n * probabilities[~common].sum()[None]]).clamp(min=1e-9)
    cells = len(observed) - 1
    assert cells > 5
    assert ((observed - expected) ** 2 / expected).sum() < cells + 4 * (2 * cells) ** 0.5  # 4 standard deviations
    assert_close(rollout.logprobs[:, 0], probabilities.log()[drawn].float(), rtol=1e-4, atol=1e-4)


def test_the_seed_and_nothing_else_decides(with_policy):
    backbone = with_policy("llama")
    torch.manual_seed(1)
    first = sample(backbone, PROMPTS)
    torch.manual_seed(2)
    assert responses_of(sample(backbone, PROMPTS)) == responses_of(first)
    assert responses_of(sample(backbone, PROMPTS, seed=1)) != responses_of(first)


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_what_is_sampled_does_not_depend_on_how_many_are_decoded_at_a_time(with_policy, at_a_time):
    """Each response has its own row of random numbers, also when others of its batch have ended."""
    backbone = with_policy("mistral")
    backbone.causal_lm.generation_config.eos_token_id = STOPS
    uniforms = uniform_table(len(PROMPTS), 12, 3)
    together = sample_responses(backbone, PROMPTS, uniforms, 1.0)
    parts = [slice(i, i + at_a_time) for i in range(0, len(PROMPTS), at_a_time)]
    apart = [sample_responses(backbone, PROMPTS[part], uniforms[part], 1.0) for part in parts]
    assert responses_of(together) == [response for rollout in apart for response in responses_of(rollout)]
    assert len({len(response) for response in responses_of(together)}) > 2


@pytest.mark.parametrize(("budget", "batches"), [(None, 1), (38, 2), (19, 6), (1, 6), (10_000, 1)])
def test_a_token_budget_splits_the_batch_and_changes_nothing(with_policy, monkeypatch, budget, batches):
    backbone = with_policy("llama")
    expected = sample(backbone, PROMPTS)
    decoded = []
    decode = rollout_module._decode

    def counted(backbone, role, prompts, uniforms, *args):
        decoded.append(len(prompts) * (max(map(len, prompts)) + uniforms.shape[1]))
        return decode(backbone, role, prompts, uniforms, *args)

    monkeypatch.setattr(rollout_module, "_decode", counted)
    rollout = sample(backbone, PROMPTS, token_budget=budget)
    assert responses_of(rollout) == responses_of(expected)
    assert_close(rollout.logprobs, expected.logprobs)
    if budget is not None and budget >= 19:  # the longest row alone
        assert all(tokens <= budget for tokens in decoded)
    if batches in (1, 6):
        assert len(decoded) == batches
    else:
        assert 1 < len(decoded) < 6


def test_prompts_keep_their_order(with_policy):
    rollout = sample(with_policy("llama"), PROMPTS, token_budget=40)
    assert [prompt for prompt, _ in rows_of(rollout.sequences)] == PROMPTS
    assert rollout.sequences.prompt_lengths.tolist() == [len(prompt) for prompt in PROMPTS]


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(with_policy):
    backbone = with_policy("llama")
    backbone.causal_lm.generation_config.eos_token_id = STOPS
    rollout = sample(backbone, PROMPTS * 8, length=6)
    assert 0 < rollout.finished.sum() < len(rollout.finished)
    for response, finished in zip(responses_of(rollout), rollout.finished.tolist(), strict=True):
        assert not set(response[:-1]) & set(STOPS)
        assert (response[-1] in STOPS) == finished
        assert finished or len(response) == 6
    mask = rollout.sequences.response_mask
    assert rollout.logprobs.shape == mask.shape
    assert (rollout.logprobs[mask] < 0).all()
    assert (rollout.logprobs[~mask] == 0).all()


def test_a_stop_token_as_first_token_is_a_response_of_one_token(with_policy):
    backbone = with_policy("llama")
    backbone.causal_lm.generation_config.eos_token_id = list(range(VOCABULARY))
    rollout = sample(backbone, PROMPTS)
    assert rollout.sequences.response_lengths.tolist() == [1] * len(PROMPTS)
    assert rollout.finished.all()
    assert rollout.logprobs.shape == (len(PROMPTS), 1)


def test_the_role_asked_for_decodes_and_the_mode_is_left_alone(with_policy):
    backbone = with_policy("llama")
    policy = sample(backbone, PROMPTS, temperature=NEARLY_GREEDY)
    reference = sample(backbone, PROMPTS, temperature=NEARLY_GREEDY, role="reference")
    assert responses_of(policy) != responses_of(reference)
    assert not policy.logprobs.requires_grad
    with torch.no_grad():
        expected, _ = backbone.logprobs("reference", reference.sequences, NEARLY_GREEDY)
    assert_close(reference.logprobs, expected, rtol=1e-3, atol=1e-3)


def test_texts_leave_special_tokens_out(with_policy):
    backbone = with_policy("llama")
    backbone.causal_lm.generation_config.eos_token_id = STOPS
    rollout = sample(backbone, PROMPTS)
    alphabet = {index: token for token, index in backbone.tokenizer.get_vocab().items()}
    for text, response in zip(response_texts(backbone, rollout), responses_of(rollout), strict=True):
        assert text.replace(" ", "") == "".join(alphabet[token] for token in response if token > 3).replace(" ", "")


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_other_quantisations_decode_too(with_policy, quantization):
    backbone = with_policy("llama", quantization=quantization)
    rollout = sample(backbone, PROMPTS)
    with torch.no_grad():
        expected, _ = backbone.logprobs("policy", rollout.sequences)
    assert_close(rollout.logprobs, expected, rtol=1e-3, atol=1e-3 if quantization == "none" else 0.3)


def test_bfloat16_log_probabilities_are_near_those_recomputed(with_policy):
    """Left padding and a cache round differently: near, which is why PPO recomputes them."""
    backbone = with_policy("llama", compute_dtype="bfloat16")
    rollout = sample(backbone, PROMPTS)
    assert rollout.logprobs.dtype == torch.float32
    with torch.no_grad():
        expected, _ = backbone.logprobs("policy", rollout.sequences)
    assert_close(rollout.logprobs, expected, rtol=0.1, atol=0.1)


def test_recorded_entropy_is_that_of_the_distribution_drawn_from(demo_backbone):
    attach_all(demo_backbone)
    prompts = [[1, 4, 30], [1, 4, 30, 31, 32], [1, 4]]
    rollout = sample(demo_backbone, prompts, temperature=0.7)
    _, entropy = demo_backbone.logprobs("policy", rollout.sequences, 0.7)
    assert rollout.entropy.max() > 0.1
    assert_close(rollout.entropy, entropy.detach(), atol=1e-4, rtol=1e-4)

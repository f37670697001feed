"""What a policy does on held-out prompts."""

from dataclasses import replace

import pytest
import torch
from demo_runs import small_recipe

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.data.tokenize import PromptExample, encode_prompt
from lorarlhf.evaluation.policy import answer, policy_metrics, win_rate
from lorarlhf.generation.sample import response_texts
from lorarlhf.intervals import wilson
from lorarlhf.recipe.sections import PPOConfig


@pytest.mark.parametrize(
    ("tuned", "base", "rate"),
    [([1, 2, 3], [0, 0, 0], 1.0), ([0.0], [1.0], 0.0), ([1, 1], [1, 1], 0.5), ([2, 1, 0, 5], [1, 1, 1, 1], 0.625)],
)
def test_win_rate_counts_ties_half(tuned, base, rate):
    assert win_rate(tuned, base) == rate


def test_win_rate_needs_pairs():
    with pytest.raises(ValueError, match="shorter"):
        win_rate([1, 2], [1])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    recipe = small_recipe(tmp_path_factory.mktemp("policy"))
    backbone = load_backbone(recipe.model)
    torch.manual_seed(0)
    for role in ("policy", "reward"):
        backbone.attach(role, recipe.lora.for_role(role))
        with torch.no_grad():
            for parameter in backbone.role_parameters(role):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


@pytest.fixture
def prompts(backbone):
    questions = ["How much are the apples?", "Hello. Which aisle has the pens?", "Are there any lamps left?"]
    conversations = [[{"role": "user", "content": text}] for text in questions]
    return [PromptExample(prompt, encode_prompt(backbone.tokenizer, prompt)) for prompt in conversations]


def by_reward(backbone):
    return lambda rollout, batch, trunk: backbone.scores(rollout.sequences)


def answers_of(backbone, role, prompts, seed=1, batch_size=64):
    config = PPOConfig(response_length=16, temperature=0.7, batch_size=batch_size, num_mini_batches=1)
    return answer(backbone, role, prompts, config, seed, by_reward(backbone))


def test_the_reference_is_0_nats_from_itself(backbone, prompts):
    assert answers_of(backbone, "reference", prompts).kl == 0
    assert answers_of(backbone, "policy", prompts).kl != 0


def test_a_seed_gives_the_same_answers(backbone, prompts):
    one, two, other = (answers_of(backbone, "policy", prompts, seed) for seed in (1, 1, 2))
    assert one.texts == two.texts != other.texts
    assert torch.equal(one.scores, two.scores)
    assert one.kl == two.kl


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_of_any_size_give_the_same_answers(backbone, prompts, batch_size):
    whole, parts = (answers_of(backbone, "policy", prompts, batch_size=size) for size in (64, batch_size))
    assert parts.texts == whole.texts
    assert parts.scores.tolist() == pytest.approx(whole.scores.tolist(), abs=1e-5)
    for name in ("kl", "entropy", "response_length", "finished"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-4), name


def test_figures_are_those_of_the_rollout(backbone, prompts):
    rollouts = []
    config = PPOConfig(response_length=9, temperature=0.7)
    answers = answer(
        backbone, "policy", prompts, config, 1, lambda rollout, *_: rollouts.append(rollout) or torch.zeros(3)
    )
    [rollout] = rollouts
    sequences = rollout.sequences
    assert answers.texts == response_texts(backbone, rollout)
    assert answers.response_length == pytest.approx(sequences.response_lengths.float().mean().item())
    assert answers.finished == pytest.approx(rollout.finished.float().mean().item())
    own, entropy = (backbone.logprobs("policy", sequences, 0.7)[k] for k in (0, 1))
    reference, _ = backbone.logprobs("reference", sequences, 0.7)
    mask = sequences.response_mask
    assert answers.entropy == pytest.approx(entropy[mask].mean().item(), abs=1e-5)
    assert answers.kl == pytest.approx((own - reference)[mask].sum().item() / 3, abs=1e-5)
    assert answer(backbone, "policy", prompts, config, 1, None).scores is None


def test_before_and_after_side_by_side(backbone, prompts):
    before, after = (answers_of(backbone, role, prompts) for role in ("reference", "policy"))
    metrics = policy_metrics(before, after)
    assert metrics["before"]["reward"] == pytest.approx(before.scores.mean().item())
    assert metrics["after"]["kl"] == after.kl
    won = wilson(win_rate(after.scores.tolist(), before.scores.tolist()), 3)
    assert [metrics["win_rate"], *metrics["win_rate_interval"]] == [won.value, won.low, won.high]
    assert "win_rate" not in policy_metrics(replace(before, scores=None), replace(after, scores=None))


def test_texts_and_scores_belong_together(backbone, prompts):
    answers = answers_of(backbone, "reference", prompts)
    assert len(answers.texts) == len(answers.scores) == len(prompts)
    tokenizer = backbone.tokenizer
    assert not any(token in text for text in answers.texts for token in tokenizer.all_special_tokens)
    for example, text, score in zip(prompts, answers.texts, answers.scores.tolist(), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # Cut at the limit or ended by eos: one of the two scores is that of the response.
        candidates = [TokenBatch.from_lists([example.ids], [r]) for r in (ids, [*ids, tokenizer.eos_token_id])]
        with torch.no_grad():
            assert any(score == pytest.approx(backbone.scores(c).item(), abs=1e-4) for c in candidates)

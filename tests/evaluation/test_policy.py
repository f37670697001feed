"""What a policy does on held-out prompts."""

import pytest
import torch
from demo_runs import small_recipe

from lorarlhf.base_model import load_backbone
from lorarlhf.data.tokenize import PromptExample, encode_prompt
from lorarlhf.evaluation.policy import answer, win_rate
from lorarlhf.sequences import Sequences


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


def answers_of(backbone, role, prompts, seed=1):
    return answer(backbone, role, prompts, response_length=16, temperature=0.7, seed=seed)


def test_the_reference_is_0_nats_from_itself(backbone, prompts):
    assert answers_of(backbone, "reference", prompts).kl == 0
    assert answers_of(backbone, "policy", prompts).kl != 0


def test_a_seed_gives_the_same_answers(backbone, prompts):
    one, two, other = (answers_of(backbone, "policy", prompts, seed) for seed in (1, 1, 2))
    assert one.texts == two.texts != other.texts
    assert torch.equal(one.scores, two.scores)
    assert one.kl == two.kl


def test_texts_and_scores_belong_together(backbone, prompts):
    answers = answers_of(backbone, "reference", prompts)
    assert len(answers.texts) == len(answers.scores) == len(prompts)
    tokenizer = backbone.tokenizer
    assert not any(token in text for text in answers.texts for token in tokenizer.all_special_tokens)
    for example, text, score in zip(prompts, answers.texts, answers.scores.tolist(), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # Cut at the limit or ended by eos: one of the two scores is that of the response.
        candidates = [Sequences.from_lists([example.ids], [r]) for r in (ids, [*ids, tokenizer.eos_token_id])]
        with torch.no_grad():
            assert any(score == pytest.approx(backbone.scores(c).item(), abs=1e-4) for c in candidates)

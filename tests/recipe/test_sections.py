"""The rules that the sections of a recipe keep by themselves."""

import math
import re

import pytest
from pydantic import ValidationError

import lorarlhf.recipe.sections as sections
from lorarlhf.recipe.sections import LoraConfig, LoraShape, PPOConfig, Recipe, RewardConfig, ScalarLoraOverride, Section

MODEL = {"model": {"name": "m"}}


SECTIONS = [value for value in vars(sections).values() if isinstance(value, type) and issubclass(value, Section)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_has_a_description(section):
    for key, field in section.model_fields.items():
        description = field.description or ""
        assert re.fullmatch(r"[A-Z].*[.]", description, re.DOTALL), f"{section.__name__}.{key}: {description!r}"
        assert len(description) <= 260, f"{section.__name__}.{key} takes more than two lines"


def test_only_the_models_name_is_required():
    recipe = Recipe.model_validate(MODEL)
    assert recipe.model.quantization == "nf4"
    assert recipe.model.trust_remote_code is False
    assert recipe.seed == 42


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "name", ""),
        ("model", "quantization", "nf3"),
        ("model", "trust_remote_code", "true"),
        ("lora", "r", 0),
        ("lora", "r", True),
        ("lora", "r", 8.0),
        ("lora", "target_modules", "q_proj"),
        ("data", "on_bad_row", "ignore"),
        ("data", "test_size", 1.5),
        ("data", "max_examples", 0),
        ("sft", "max_steps", -2),
        ("reward", "label_smoothing", 0.5),
        ("ppo", "kl_coef", True),
        ("ppo", "kl_coef", "0.1"),
        ("ppo", "kl_coef", math.nan),
        ("ppo", "learning_rate", math.inf),
        ("ppo", "learning_rate", 0),
        ("ppo", "gamma", 1.1),
        ("ppo", "epochs", 4),
        ("ppo", "stop_when", {"kl": 0}),
        ("ppo", "stop_when", {"held_out_worse": 0}),
        ("ppo", "stop_when", {"reward": 1}),
        ("ppo", "reward_functions", ["no_colon"]),
        ("ppo", "reward_functions", [{"function": "a.b:c", "weight": "2"}]),
        ("export", "dtype", "nf4"),
    ],
)
def test_refused(section, key, value):
    recipe = {**MODEL, section: {**MODEL.get(section, {}), key: value}}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(recipe)
    assert caught.value.errors()[0]["loc"][:2] == (section, key)


def test_whole_numbers_are_numbers():
    assert Recipe.model_validate({**MODEL, "ppo": {"kl_coef": 1}}).ppo.kl_coef == 1.0


def test_reward_functions_by_name_or_with_weight():
    ppo = PPOConfig.model_validate({"reward_functions": ["a.b:c", {"function": "d:e", "weight": 0.5}]})
    assert ppo.reward_functions[0] == "a.b:c"
    assert ppo.reward_functions[1].weight == 0.5


def test_minibatches_are_equal():
    with pytest.raises(ValidationError, match="batch_size 10 must be a multiple of num_mini_batches 4"):
        PPOConfig(batch_size=10)


def test_a_coefficient_of_0_cannot_be_adapted():
    assert PPOConfig(kl_coef=0).kl_target is None
    with pytest.raises(ValidationError, match="kl_target adapts kl_coef by factors, which leave 0 at 0"):
        PPOConfig(kl_coef=0, kl_target=6)


def test_a_policy_that_would_not_be_trained():
    with pytest.raises(ValidationError, match="iterations 5 must be more than critic_warmup_iterations 5, in which"):
        PPOConfig(iterations=5, critic_warmup_iterations=5)
    assert PPOConfig(iterations=6, critic_warmup_iterations=5).critic_only_iterations == 5
    without_critic = PPOConfig(iterations=5, critic_warmup_iterations=5, advantage_estimator="rloo")
    assert without_critic.critic_only_iterations == 0


def test_a_rule_that_counts_evaluations_needs_some():
    rules = {"held_out_worse": 3}
    assert PPOConfig(stop_when=rules).stop_when.kl is None
    with pytest.raises(ValidationError, match="held_out_worse, which counts evaluations, but eval_every is 0"):
        PPOConfig(stop_when=rules, eval_every=0)
    assert PPOConfig(stop_when={"kl": 1}, eval_every=0)


@pytest.mark.parametrize(
    "option", [{"use_margin": True}, {"label_smoothing": 0.1}, {"center_rewards_coefficient": 0.1}]
)
def test_pairwise_options_need_pairs(option):
    assert RewardConfig(objective="bradley_terry", **option)
    with pytest.raises(ValidationError, match="belong to objective bradley_terry"):
        RewardConfig(objective="regression", **option)


def test_role_overrides_fall_back_to_lora():
    lora = LoraConfig(r=16, alpha=32, critic=ScalarLoraOverride(r=4, top_layers=0.25))
    assert lora.for_role("critic") == LoraShape(r=4, alpha=32, target_modules="all-linear", top_layers=0.25)
    assert lora.for_role("policy") == LoraShape(r=16, alpha=32, target_modules="all-linear", top_layers=1.0)


@pytest.mark.parametrize(
    ("share", "layers", "expected"), [(1.0, 28, 28), (0.5, 28, 14), (0.25, 6, 2), (0.01, 28, 1), (0.5, 1, 1)]
)
def test_a_share_of_the_layers_is_at_least_one(share, layers, expected):
    shape = LoraShape(r=1, alpha=1, target_modules="all-linear", top_layers=share)
    assert shape.layer_count(layers) == expected


def test_sections_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        PPOConfig().kl_coef = 1.0


def test_an_evaluation_of_ppo_takes_no_more_prompts_than_are_held_out():
    def recipe(data, ppo):
        return Recipe.model_validate({"model": {"name": "m"}, "data": data, "ppo": ppo})

    assert recipe({}, {"eval_prompts": 64}).prompts_evaluated == 64
    assert recipe({"eval_examples": 16}, {"eval_prompts": 64}).prompts_evaluated == 16
    assert recipe({"eval_examples": 500}, {"eval_prompts": 64}).prompts_evaluated == 64
    assert recipe({}, {"eval_every": 0}).prompts_evaluated == 0

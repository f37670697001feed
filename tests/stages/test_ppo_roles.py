"""The ppo stage: which reward it takes, what a response scores, and where each role starts."""

import pytest
import torch
from demo_runs import (
    equal,
    letter_e,
    short_is_good,
    small_recipe,
    weights,
)
from safetensors.torch import load_file

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.errors import UserError
from lorarlhf.generation.sample import Rollout
from lorarlhf.rl.algorithms import make_algorithm
from lorarlhf.rl.score import ScoringPasses, response_scorer
from lorarlhf.run import Run
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.roles import attach_roles, find_reward_adapter

FUNCTION = 'ppo.reward_functions=["demo_runs:short_is_good"]'


def some_sequences():
    return TokenBatch.from_lists([[1, 40, 41], [1, 42]], [[50, 51, 52, 2], [53, 2]])


# Which reward


@pytest.mark.parametrize(
    ("weight", "functions", "stages", "folder"),
    [
        (1.0, False, ["reward"], "reward"),
        (1.0, True, ["reward"], "reward"),
        (1.0, True, [], None),
        (0.0, True, ["reward"], None),
    ],
)
def test_the_reward_adapter_of_the_run(run, weight, functions, stages, folder):
    run = run(*stages)
    assert find_reward_adapter(weight, functions, run, None) == (run.path / folder if folder else None)


def test_a_reward_adapter_from_elsewhere(run, tmp_path):
    elsewhere = run("reward").stage("reward")
    assert find_reward_adapter(1.0, False, Run(tmp_path / "other"), str(elsewhere)) == elsewhere


@pytest.mark.parametrize(
    ("weight", "reward", "message"),
    [
        (
            1.0,
            None,
            "{tmp}/none/reward: no reward adapter there; run `lorarlhf reward` with this recipe and --output-dir ",
        ),
        (0.0, None, "ppo.reward_model_weight is 0 and ppo.reward_functions is empty"),
        (1.0, "{tmp}", "--reward {tmp}: no adapter_config.json there"),
        (1.0, "{tmp}/missing/folder", "--reward {tmp}/missing/folder: neither a folder nor a Hub id"),
        (1.0, "nobody/nothing", "--reward nobody/nothing: neither a folder nor a Hub id that can be read"),
    ],
)
def test_no_reward(tmp_path, weight, reward, message):
    with pytest.raises(UserError) as error:
        find_reward_adapter(weight, False, Run(tmp_path / "none"), reward and reward.format(tmp=tmp_path))
    assert str(error.value).startswith(message.format(tmp=tmp_path))
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_model_is_refused(run, tmp_path, tiny_model):
    recipe = small_recipe(tmp_path, f"model.name={tiny_model('llama')}", "data.max_prompt_length=200")
    run = run("reward")
    with pytest.raises(UserError, match="the adapter was trained on shipped:demo/model, which has another config than"):
        train_ppo(recipe, run)
    with pytest.raises(UserError, match="the adapter was made for another model than"):
        train_ppo(recipe, run, allow_other_base=True)
    assert not run.stage("ppo").exists()


# The score


@pytest.fixture
def scored(run, tmp_path):
    """`scored(*sets)`: score of two responses, the backbone, and what the reward model alone would say."""

    def make(*sets, stages=("reward",)):
        recipe = small_recipe(tmp_path, *sets)
        run_ = run(*stages)
        backbone = load_backbone(recipe.model)
        give_roles(backbone, recipe, run_)
        sequences = some_sequences()
        functions = [(short_is_good, 1.0), (letter_e, 3.0)][: len(recipe.ppo.reward_functions)]
        examples = [PromptExample("?", [1])] * 2
        rollout = Rollout(sequences, torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(2, dtype=torch.bool))
        passes = ScoringPasses(backbone, 1.0, recipe.ppo.token_budget)
        scores = response_scorer(passes, recipe.ppo.reward_model_weight, functions)(rollout, examples, None)
        texts = [backbone.tokenizer.decode(ids, skip_special_tokens=True) for ids in ([50, 51, 52], [53])]
        with torch.no_grad():
            model = backbone.scores(sequences) if "reward" in backbone.roles else None
        return scores, texts, model

    return make


def test_the_reward_model_alone(scored):
    scores, _, model = scored()
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores, model)


def test_the_reward_model_and_functions_are_added_with_weights(scored):
    scores, texts, model = scored(
        "ppo.reward_model_weight=-0.5",
        'ppo.reward_functions=["demo_runs:short_is_good", {function: "demo_runs:letter_e", weight: 3.0}]',
    )
    functions = torch.tensor(short_is_good([], texts)) + 3 * torch.tensor(letter_e([], texts))
    torch.testing.assert_close(scores, -0.5 * model + functions)


@pytest.mark.parametrize("stages", [(), ("reward",)])
def test_functions_alone(scored, stages):
    weight = "ppo.reward_model_weight=0.0" if stages else "ppo.reward_model_weight=1.0"
    scores, texts, model = scored(FUNCTION, weight, stages=stages)
    assert model is None, "the reward model is not even loaded"
    torch.testing.assert_close(scores, torch.tensor(short_is_good([], texts)))


# Where the roles start


def give_roles(backbone, recipe, run):
    config = recipe.ppo
    folder = find_reward_adapter(config.reward_model_weight, bool(config.reward_functions), run, None)
    sft = run.stage("sft") if run.has_adapter("sft") else None
    attach_roles(backbone, make_algorithm(config), recipe.lora, sft, folder)


def started(run, recipe):
    backbone = load_backbone(recipe.model)
    torch.manual_seed(recipe.seed)
    give_roles(backbone, recipe, run)
    return backbone


def test_from_sft_the_reference_is_a_copy_of_it(run, tmp_path):
    run = run("sft", "reward")
    backbone = started(run, small_recipe(tmp_path))
    saved = load_file(run.stage("sft") / "adapter_model.safetensors")
    assert len(saved) == len(weights(backbone, "policy"))
    assert equal(weights(backbone, "policy"), weights(backbone, "reference"))
    assert sorted(x.sum().item() for x in saved.values()) == pytest.approx(
        sorted(x.sum().item() for x in weights(backbone, "reference"))
    )
    with torch.no_grad():
        policy, reference = (backbone.logprobs(role, some_sequences())[0] for role in ("policy", "reference"))
        assert torch.equal(policy, reference)
        bare = load_backbone(small_recipe(tmp_path).model).logprobs("reference", some_sequences())[0]
    assert (policy - bare).abs().max() > 1e-2, "the sft adapter does something"


def test_from_the_bare_base_the_policy_is_the_base(run, tmp_path):
    backbone = started(run("reward"), small_recipe(tmp_path))
    assert backbone.roles == {"policy", "reward", "critic"}
    with torch.no_grad():
        policy, reference = (backbone.logprobs(role, some_sequences())[0] for role in ("policy", "reference"))
    torch.testing.assert_close(policy, reference, rtol=0, atol=0)


def test_the_critic_starts_as_the_reward_model(run, tmp_path):
    """The value of a state is what the reward model would say of the text so far."""
    backbone = started(run("reward"), small_recipe(tmp_path))
    assert equal(weights(backbone, "critic"), weights(backbone, "reward"))
    sequences = some_sequences()
    with torch.no_grad():
        values = backbone.values(sequences)
        for row, prompt in enumerate(sequences.prompt_lengths.tolist()):
            for t in range(int(sequences.response_lengths[row])):
                so_far = TokenBatch.from_lists([sequences.tokens[row, : prompt + t].tolist()], [[]])
                assert values[row, t].item() == pytest.approx(backbone.scores(so_far).item(), abs=1e-4)


def test_a_critic_with_a_shape_of_its_own_starts_afresh(run, tmp_path):
    backbone = started(run("reward"), small_recipe(tmp_path, "lora.critic.r=2", "lora.critic.alpha=6"))
    config = backbone.peft_model.peft_config["critic"]
    assert (config.r, config.lora_alpha) == (2, 6)
    assert backbone.peft_model.peft_config["reward"].r == 8
    assert not torch.equal(backbone.value_head.weight, backbone.reward_head.weight)
    b = [parameter for name, parameter in backbone.named_parameters() if "lora_B.critic" in name]
    assert b
    assert all(parameter.eq(0).all() for parameter in b)


def test_only_policy_and_critic_train(run, tmp_path):
    backbone = started(run("sft", "reward"), small_recipe(tmp_path))
    trained = {id(p) for p in backbone.parameters() if p.requires_grad}
    assert trained == {id(p) for role in ("policy", "critic") for p in backbone.role_parameters(role)}
    assert all(p.dtype == torch.float32 for p in backbone.parameters() if p.requires_grad)

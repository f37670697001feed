"""`--engine trl` as far as it goes without TRL 1.12: what it refuses, and the views it hands over.

tests/parity runs it.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from demo_runs import save_random_adapter, small_recipe
from tiny_models import attach_all, mixed_sequences, rows_of
from transformers import GenerationConfig

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.trl_engine import NEUTRAL, SAME, PolicyView, RoleView, ScalarView, check_trl
from lorarlhf.run import Run
from lorarlhf.stages.ppo import train_ppo

# Keys of `ppo` that the engine reads itself, that our trainer goes on serving, or that say how and not what.
SERVED = {
    *("iterations", "batch_size", "micro_batch_tokens", "gradient_checkpointing", "recompute_logprobs"),
    *("eval_every", "eval_prompts", "save_every", "save_total_limit", "report_to", "kl_horizon", "scale_rewards"),
}


@pytest.fixture
def with_trl(monkeypatch):
    """TRL 1.12 is there, as far as anyone asks."""
    monkeypatch.setitem(sys.modules, "trl.experimental.ppo", SimpleNamespace())


def test_no_key_is_ignored():
    """A new key of `ppo` has to say here what it means to TRL."""
    assert set(PPOConfig.model_fields) == {*SAME, *NEUTRAL, *SERVED}


def test_without_its_ppo_trl_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.experimental.ppo", None)
    with pytest.raises(UserError) as error:
        check_trl(PPOConfig(max_grad_norm=1e6), resume=False)
    message = str(error.value)
    assert message.startswith("--engine trl: the installed trl has no PPO")
    assert 'pip install "lorarlhf[trl-ppo]"' in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "resume", "message"),
    [
        ({}, True, "--resume: TRL's PPO cannot go on from a checkpoint; run again without --resume"),
        ({"early_stop_kl": 0.1, "normalize_reward": True}, False, "TRL's PPO has no early_stop_kl, normalize_reward; "),
        ({"reward_functions": ["m:f"]}, False, "TRL's PPO has no reward_functions; switch off with --set"),
        (
            {"max_grad_norm": 1.0},
            False,
            "TRL's PPO has no max_grad_norm; switch off with --set ppo.max_grad_norm=1000000.0",
        ),
        (
            {"whiten_rewards": True, "num_mini_batches": 16},
            False,
            "ppo.whiten_rewards: TRL needs minibatches of 8 resp",
        ),
    ],
)
def test_what_trl_cannot_do_is_refused(with_trl, settings, resume, message):
    with pytest.raises(UserError) as error:
        check_trl(PPOConfig(**{"max_grad_norm": 1e6, **settings}), resume)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_settings_it_names_are_accepted(with_trl):
    other = {
        "advantage_estimator": "rloo",
        "num_generations": 4,
        "kl_in": "loss",
        "critic_warmup_iterations": 1,
        "reward_functions": ["m:f"],
        "normalize_reward": True,
        "stop_when": {"kl": 10},
        "on_nan": "skip",
    }
    unlike = dict.fromkeys(NEUTRAL, 0.5) | other
    assert set(unlike) == set(NEUTRAL)
    with pytest.raises(UserError) as error:
        check_trl(PPOConfig(**unlike), resume=False)
    sets = str(error.value).split("switch off with ")[1].removeprefix("--set ").split(" --set ")
    assert len(sets) == len(NEUTRAL)
    check_trl(load_recipe("demo", sets=sets).ppo, resume=False)


def test_a_batch_of_more_prompts_than_there_are_is_refused(with_trl, tmp_path):
    """TRL would wait for a full batch for ever. What an earlier run left stays where it is."""
    recipe = small_recipe(tmp_path, "ppo.max_grad_norm=1e6", "ppo.batch_size=22")
    run = Run(tmp_path / "run")
    save_random_adapter(recipe, run, "reward")
    run.stage("ppo").mkdir()
    with pytest.raises(UserError, match=r"ppo\.batch_size: TRL needs as many prompts, and there are 20; lower it"):
        train_ppo(recipe, run, engine="trl")
    assert sorted(path.name for path in run.path.iterdir()) == ["ppo", "reward"]


# The views


@pytest.fixture
def backbone(load_tiny):
    return attach_all(load_tiny("llama"))


def test_a_view_computes_as_its_role_and_puts_the_last_one_back(backbone):
    sequences = mixed_sequences()
    for role in ("policy", "reference"):
        view = RoleView(backbone, role, backbone.causal_lm)
        with torch.no_grad(), backbone.role("critic"):
            logits = view(input_ids=sequences.tokens, use_cache=False).logits
            assert backbone.adapters.active == "critic"
            expected = backbone.logits(backbone.hidden_states(role, sequences))
            others = backbone.logits(backbone.hidden_states("reward", sequences))
        torch.testing.assert_close(logits, expected)
        assert (logits - others).abs().max() > 1e-3


def test_a_scalar_view_scores_as_the_backbone_does(backbone):
    sequences = mixed_sequences()
    rows = torch.arange(len(sequences))
    with torch.no_grad():
        for role, expected in (("reward", backbone.scores(sequences)), ("critic", None)):
            view = ScalarView(backbone, role)
            trunk = getattr(view, view.base_model_prefix)
            output = trunk(input_ids=sequences.tokens, output_hidden_states=True, use_cache=False)
            scores = view.score(output.hidden_states[-1]).squeeze(-1)
            if role == "reward":
                torch.testing.assert_close(scores[rows, sequences.lengths - 1], expected)
            else:
                prompt = sequences.prompt_lengths[0]
                torch.testing.assert_close(scores[0, prompt - 1], backbone.values(sequences)[0, 0])


def test_only_policy_and_critic_train_through_the_views(backbone):
    module = torch.nn.ModuleList([PolicyView(backbone), ScalarView(backbone, "critic")])
    trained = [id(p) for p in module.parameters() if p.requires_grad]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for role in ("policy", "critic") for p in backbone.role_parameters(role)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_policy_view_samples_as_the_policy_with_settings_of_its_own(backbone, checkpointing):
    if checkpointing:
        backbone.enable_gradient_checkpointing()
    own = backbone.causal_lm.generation_config
    own.repetition_penalty = 5.0
    before = own.to_dict()
    view = PolicyView(backbone)
    view.generation_config.eos_token_id = 7  # as TRL does
    assert backbone.causal_lm.generation_config.to_dict() == before
    view.train()
    prompt = torch.tensor([rows_of(mixed_sequences())[0][0]])
    generated = view.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=None),
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert view.training
    assert backbone.causal_lm.training
    scores = torch.stack(generated.scores, 1)[0]
    whole = TokenBatch.from_lists([prompt[0].tolist()], [generated.sequences[0, prompt.shape[1] :].tolist()])
    with torch.no_grad():
        logits = backbone.logits(backbone.hidden_states("policy", whole))[0, prompt.shape[1] - 1 : -1]
    torch.testing.assert_close(scores, logits, rtol=1e-4, atol=1e-4)


def test_neutral_values_are_the_defaults_that_switch_off():
    """But for clipping, which has none, a recipe that says nothing asks nothing of TRL that it lacks."""
    default = PPOConfig()
    assert {key for key, neutral in NEUTRAL.items() if getattr(default, key) != neutral} == {"max_grad_norm"}

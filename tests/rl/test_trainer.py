"""What PPO means here (DESIGN.md), held against the trainer as it runs."""

import dataclasses
import math

import ppo_reference as reference
import pytest
import torch
from demo_runs import equal, weights
from trainers import gradients, randomise, rows_of

from lorarlhf.generation import sample as rollout
from lorarlhf.rl.schedule import prompt_rows
from lorarlhf.rl.trainer import PPOTrainer

# The first minibatch


@pytest.mark.parametrize(("temperature", "recompute"), [(1.0, True), (0.6, True), (0.6, False), (1.7, False)])
def test_kl_is_0_and_ratio_1_on_the_first_minibatch(make_trainer, temperature, recompute):
    trainer = make_trainer(
        "ppo.iterations=1",
        "ppo.num_mini_batches=1",
        f"ppo.temperature={temperature}",
        f"ppo.recompute_logprobs={str(recompute).lower()}",
    )
    trainer.train()
    (row,) = rows_of(trainer)
    assert row["kl"] == pytest.approx(0, abs=0 if recompute else 1e-5)
    assert row["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert row["clip_fraction"] == row["value_clip_fraction"] == 0
    assert row["rollout_gap"] < 1e-5
    assert row["policy_loss"] == pytest.approx(0, abs=1e-5)  # advantages are whitened, so their mean is 0


def test_the_logged_numbers_are_those_of_the_rollout(make_trainer):
    trainer = make_trainer("ppo.iterations=1")
    trainer.train()
    (row,) = rows_of(trainer)
    rollout = trainer._sample([trainer.prompts[i] for i in prompt_rows(20, 8, 0, trainer.seed)], seed=0)
    assert row["iteration"] == 1
    assert row["step"] == 2
    assert row["reward"] == pytest.approx(-row["response_length"] / 4)
    assert 1 <= row["response_length"] <= 12
    assert 0 <= row["finished"] <= 1
    assert 0 < row["entropy"] < math.log(trainer.backbone.causal_lm.config.vocab_size)
    assert len(rollout.sequences) == 8


@pytest.mark.parametrize("recompute", ["true", "false"])
def test_the_gap_to_what_sampling_recorded_is_logged(make_trainer, monkeypatch, recompute):
    trainer = make_trainer(f"ppo.recompute_logprobs={recompute}", "ppo.iterations=1")

    def off_by_a_half(*args, real=trainer._sample, **kwargs):
        rollout = real(*args, **kwargs)
        return dataclasses.replace(rollout, logprobs=rollout.logprobs - 0.5 * rollout.sequences.response_mask)

    monkeypatch.setattr(trainer, "_sample", off_by_a_half)
    trainer.train()
    (row,) = rows_of(trainer)
    assert row["rollout_gap"] == pytest.approx(0.5, abs=1e-3)


# Loss and gradients


@pytest.fixture
def off_policy(make_trainer):
    """A trainer whose policy and critic have moved away from the experience they made: ratios are not 1."""

    def make(*sets):
        trainer = make_trainer("ppo.cliprange=0.02", "ppo.cliprange_value=0.02", "ppo.response_length=24", *sets)
        experience = trainer.make_experience()
        torch.manual_seed(2)
        randomise(trainer.backbone, 0.02, "policy", "critic")
        return trainer, experience

    return make


def test_loss_against_the_slow_computation(off_policy):
    trainer, experience = off_policy("ppo.vf_coef=0.7", "ppo.entropy_coef=0.3")
    loss, _ = gradients(trainer, experience)
    sequences, config = experience.sequences, trainer.config
    with torch.no_grad():
        now, entropy = trainer.backbone.logprobs("policy", sequences, config.temperature)
        values = trainer.backbone.values(sequences)
    tables = now, experience.logprobs, experience.advantages, values, experience.values, experience.returns, entropy
    lengths = sequences.response_lengths.tolist()
    policy, value, bonus = [], [], []
    for rows in zip(*(reference.ragged(table.tolist(), lengths) for table in tables), strict=True):
        for p, old_p, a, v, old_v, r, h in zip(*rows, strict=True):
            policy.append(reference.policy_loss(p, old_p, a, config.cliprange))
            value.append(reference.value_loss(v, old_v, r, config.cliprange_value))
            bonus.append(h)
    n = len(bonus)
    expected = sum(x for x, _ in policy) / n + 0.7 * sum(x for x, _ in value) / n - 0.3 * sum(bonus) / n
    assert loss == pytest.approx(expected, rel=1e-4)
    clipped, value_clipped = sum(c for _, c in policy), sum(c for _, c in value)
    assert clipped > 0
    assert value_clipped > 0
    assert trainer.update_stats["clip_fraction"] == pytest.approx([clipped / n])
    assert trainer.update_stats["value_clip_fraction"] == pytest.approx([value_clipped / n])


def test_micro_batches_of_any_size_give_the_same_gradients(off_policy):
    trainer, experience = off_policy("ppo.entropy_coef=0.1", "ppo.micro_batch_tokens=100000")
    loss, whole = gradients(trainer, experience)
    lengths = experience.sequences.response_lengths
    assert lengths.unique().numel() > 1, "responses of one length would prove nothing"
    calls = []
    trainer.policy_loss = lambda *args, real=trainer.policy_loss: calls.append(None) or real(*args)
    for budget in (1, 60, 100):
        trainer.update_budget.tokens = budget
        calls.clear()
        split_loss, split = gradients(trainer, experience)
        assert len(calls) == len(list(experience.sequences.micro_batches(budget))) > 1
        assert split_loss == pytest.approx(loss, rel=1e-5)
        for role in whole:
            for a, b in zip(whole[role], split[role], strict=True):
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6 * a.abs().max().item())


def test_running_out_of_memory_halves_the_budget_and_changes_nothing_else(off_policy, caplog):
    trainer, experience = off_policy("ppo.entropy_coef=0.1", "ppo.micro_batch_tokens=100000")
    loss, whole = gradients(trainer, experience)
    real = trainer.backbone.values
    allowed, seen = experience.sequences.tokens.numel() // 2, []

    def values(sequences, *args):  # the critic's pass comes after the policy has left gradients behind
        seen.append(sequences.tokens.numel())
        if seen[-1] > allowed:
            raise torch.OutOfMemoryError
        return real(sequences, *args)

    trainer.backbone.values = values
    split_loss, split = gradients(trainer, experience)
    assert seen[0] > allowed >= max(seen[1:])
    assert trainer.update_budget.tokens == allowed
    assert caplog.text.count("update: out of memory") == 1
    assert split_loss == pytest.approx(loss, rel=1e-5)
    for role in whole:
        for a, b in zip(whole[role], split[role], strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6 * a.abs().max().item())


def test_a_rollout_that_ran_out_of_memory_is_sampled_anew(make_trainer, monkeypatch):
    """With half the tokens, and not from where the random numbers of the failed attempt stopped."""
    trainer = make_trainer()
    prompts = trainer.prompts[:8]
    trainer.rollout_budget.tokens = 8 * (max(len(p.ids) for p in prompts) + 12) // 2
    expected = trainer._sample(prompts, seed=3)
    decode, calls = rollout._decode, []

    def short_of_memory(backbone, role, some, *args):
        calls.append(len(some))
        if len(some) == 8:
            decode(backbone, role, some, *args)
            raise torch.OutOfMemoryError
        return decode(backbone, role, some, *args)

    monkeypatch.setattr(rollout, "_decode", short_of_memory)
    trainer.rollout_budget.tokens = 10**9
    sampled = trainer._sample(prompts, seed=3)
    assert calls[0] == 8
    assert sum(calls[1:]) == 8
    assert torch.equal(sampled.sequences.tokens, expected.sequences.tokens)


# The trunk that reward model and critic share


@pytest.mark.parametrize("reference_is", ["base", "adapter"])
def test_a_shared_trunk_changes_nothing(make_trainer, monkeypatch, reference_is):
    """The same experience and the same gradients as when every role computes all layers."""
    sets = ["lora.reward.top_layers=0.5", "lora.critic.top_layers=0.5", "model.compute_dtype=float32"]
    results = []
    for shared in (True, False):
        torch.manual_seed(0)  # for the heads
        trainer = make_trainer(*sets)
        if reference_is == "base":
            trainer.backbone.adapters.detach("reference")
        trainer.score = lambda rollout, batch, trunk, t=trainer: t.passes.scores(rollout.sequences, trunk)
        if not shared:
            trainer.passes.reference = lambda sequences, p=trainer.passes: (p.logprobs("reference", sequences)[0], None)
        experience = trainer.make_experience()
        assert (experience.trunk is not None) == shared
        results.append((trainer.stats["reward"], experience, gradients(trainer, experience)))
    (reward, ours, (loss, grads)), (plain_reward, plain, (plain_loss, plain_grads)) = results
    assert ours.trunk.layer == trainer.backbone.first_layer("critic") == len(trainer.backbone.layers) // 2
    assert reward == pytest.approx(plain_reward, rel=1e-5)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for name in ("logprobs", "values", "advantages", "returns", "kl"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-4, atol=1e-5)
    for role in grads:
        for a, b in zip(grads[role], plain_grads[role], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * b.abs().max().item())


def test_only_policy_and_critic_get_gradients(off_policy):
    trainer, experience = off_policy()
    gradients(trainer, experience)
    trained = {id(p) for role in ("policy", "critic") for p in trainer.backbone.role_parameters(role)}
    for name, parameter in trainer.backbone.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


def test_entropy_bonus(off_policy):
    """It lowers the loss by the mean entropy, pushes the policy only, and pushes it towards more entropy."""
    trainer, experience = off_policy()
    loss, without = gradients(trainer, experience)
    trainer.config = trainer.config.model_copy(update={"entropy_coef": 0.5})
    loss_with, with_bonus = gradients(trainer, experience)

    def mean_entropy():
        with torch.no_grad():
            return (
                trainer.backbone.logprobs("policy", experience.sequences, trainer.config.temperature)[1][
                    experience.mask
                ]
                .mean()
                .item()
            )

    assert loss - loss_with == pytest.approx(0.5 * mean_entropy(), rel=1e-4)
    assert equal(without["critic"], with_bonus["critic"])
    before = mean_entropy()
    for p, a, b in zip(
        trainer.backbone.role_parameters("policy"), with_bonus["policy"], without["policy"], strict=True
    ):
        p.data -= 0.05 * (a - b)  # a step short enough for the gradient to hold
    assert mean_entropy() > before


# Whole runs


def test_frozen_means_frozen(make_trainer):
    trainer = make_trainer()
    backbone = trainer.backbone
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}

    def state():
        everything = {**backbone.state_dict(), **dict(backbone.named_buffers())}
        # The PEFT model wraps the same tensors under names of its own.
        return {name: x for name, x in everything.items() if not name.startswith("peft_model.")}

    before = {name: x.clone() for name, x in state().items()}
    assert any("absmax" in name for name in before), "the 4-bit weights' scales count too"
    trainer.train()
    after = state()
    assert {name for name, x in before.items() if not torch.equal(x, after[name])} == trained
    assert {name.split(".")[-2] for name in trained if "lora" in name} == {"policy", "critic"}
    assert {name for name in trained if "lora" not in name} == {"heads.critic.weight"}


def test_critic_warmup_leaves_the_policy_untouched(make_trainer):
    for warmup, policy_stays in [(2, True), (1, False)]:
        trainer = make_trainer("ppo.iterations=2", f"ppo.critic_warmup_iterations={warmup}", "ppo.weight_decay=0.1")
        before = {role: weights(trainer.backbone, role) for role in ("policy", "critic")}
        trainer.train()
        assert equal(before["policy"], weights(trainer.backbone, "policy")) == policy_stays
        assert not equal(before["critic"], weights(trainer.backbone, "critic"))
        assert ["policy_loss" in row for row in rows_of(trainer)] == [False, not policy_stays]


def test_early_stop_ends_the_iteration_and_not_the_run(make_trainer):
    sets = "ppo.iterations=3", "ppo.num_ppo_epochs=2", "ppo.learning_rate=0.01"
    trainer = make_trainer(*sets, "ppo.early_stop_kl=1e-6")
    trainer.train()
    # The first minibatch of an iteration is on-policy, the second no longer is.
    assert [(row["iteration"], row["step"]) for row in rows_of(trainer)] == [(1, 2), (2, 4), (3, 6)]
    trainer = make_trainer(*sets, "ppo.early_stop_kl=1e6", "ppo.iterations=2")
    trainer.train()
    assert [(row["iteration"], row["step"]) for row in rows_of(trainer)] == [(1, 4), (2, 8)]


def test_adaptive_kl_follows_the_logged_kl(make_trainer):
    sets = "ppo.iterations=4", "ppo.learning_rate=0.01", "ppo.kl_target=0.01", "ppo.kl_horizon=100"
    trainer = make_trainer(*sets)
    trainer.train()
    rows = rows_of(trainer)
    assert rows[0]["kl"] < 0.01 < rows[-1]["kl"], "below the target at first, above it later"
    assert rows[1]["kl_coef"] < rows[0]["kl_coef"] == trainer.config.kl_coef
    for i, row in enumerate(rows):
        expected = reference.adaptive_kl(trainer.config.kl_coef, 0.01, 100, [(r["kl"], 8) for r in rows[:i]])
        assert row["kl_coef"] == pytest.approx(expected)
    assert rows[-1]["kl_coef"] > min(row["kl_coef"] for row in rows)


def test_a_fixed_coefficient_stays(make_trainer):
    trainer = make_trainer("ppo.learning_rate=0.01")
    trainer.train()
    assert {row["kl_coef"] for row in rows_of(trainer)} == {0.05}


def test_normalized_clipped_and_penalised_rewards_are_what_ppo_sees(make_trainer, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lorarlhf.rl.trainer.build_experience",
        lambda *args, real=PPOTrainer.make_experience.__globals__["build_experience"], **settings: (
            seen.append(args[4]) or real(*args, **settings)
        ),
    )
    trainer = make_trainer(
        *("ppo.normalize_reward=true", "ppo.reward_clip=1.2", "ppo.missing_eos_penalty=3.0"),
        score=lambda rollout, batch, trunk: 100 + torch.arange(8.0),
    )
    finished = torch.tensor([True, False] * 4)
    monkeypatch.setattr(
        trainer,
        "_sample",
        lambda *args, real=trainer._sample, **kwargs: dataclasses.replace(real(*args, **kwargs), finished=finished),
    )
    trainer.make_experience()
    x = torch.arange(8.0)
    expected = ((x - x.mean()) / x.std(correction=0)).clamp(-1.2, 1.2) - 3.0 * ~finished
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    assert trainer.stats["reward"] == 103.5  # what is logged is the raw score


@pytest.mark.parametrize("sign", [1, -1])
def test_the_policy_learns_what_is_rewarded(make_trainer, tiny_model, sign):
    """A random model, paid for each token of one half of its vocabulary and fined for those of the other."""

    def score(rollout, batch, trunk):
        sequences = rollout.sequences
        spans = zip(sequences.tokens, sequences.prompt_lengths, sequences.lengths, strict=True)
        return sign * torch.stack([(row[start:end] % 2 * 2 - 1).float().sum() for row, start, end in spans])

    trainer = make_trainer(
        f"model.name={tiny_model('llama')}",
        "data.max_prompt_length=100",
        "ppo.iterations=5",
        "ppo.batch_size=32",
        "ppo.num_ppo_epochs=4",
        "ppo.num_mini_batches=1",
        "ppo.response_length=8",
        "ppo.learning_rate=0.02",
        "ppo.kl_coef=0.0",
        score=score,
        scale=0.0,
    )
    trainer.backbone.value_head.weight.data.zero_()
    trainer.train()
    rewards = [row["reward"] for row in rows_of(trainer)]
    assert rewards[-1] > rewards[0] + 1.5, rewards

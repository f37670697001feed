"""What RL means here (DESIGN.md), held against the loop as it runs."""

import dataclasses
import gc
import math
import weakref

import ppo_reference as reference
import pytest
import torch
from demo_runs import equal, weights
from loops import rows_of

from lorarlhf.generation.sample import ResponseSampler
from lorarlhf.rl import loop as loop_module
from lorarlhf.rl.experience import Experience
from lorarlhf.rl.learner import Learner

# The first minibatch


@pytest.mark.parametrize(("temperature", "recompute"), [(1.0, True), (0.6, True), (0.6, False), (1.7, False)])
@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_kl_is_0_and_ratio_1_on_the_first_minibatch(loop, temperature, recompute, estimator):
    loop = loop(
        "ppo.iterations=1",
        "ppo.num_mini_batches=1",
        f"ppo.temperature={temperature}",
        f"ppo.recompute_logprobs={str(recompute).lower()}",
        f"ppo.advantage_estimator={estimator}",
    )
    loop.train()
    (row,) = rows_of(loop)
    assert row["kl"] == pytest.approx(0, abs=0 if recompute else 1e-5)
    assert row["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert row["clip_fraction"] == row.get("value_clip_fraction", 0) == 0
    assert row["rollout_gap"] < 1e-5
    if estimator == "gae":
        assert row["policy_loss"] == pytest.approx(0, abs=1e-5)  # advantages are whitened, so their mean is 0
    if estimator == "grpo":
        assert row["kl_loss"] == pytest.approx(0, abs=1e-6)


def test_the_logged_numbers_are_those_of_the_rollout(loop):
    loop = loop("ppo.iterations=1")
    _, rollout = loop.sample()
    loop.train()
    (row,) = rows_of(loop)
    assert row["iteration"] == 1
    assert row["step"] == 2
    assert row["response_length"] == rollout.sequences.response_lengths.float().mean().item()
    assert row["reward"] == pytest.approx(-row["response_length"] / 4)
    assert row["finished"] == rollout.finished.float().mean().item()
    assert 0 < row["entropy"] < math.log(loop.backbone.causal_lm.config.vocab_size)
    assert row["seconds_rollout"] > 0 < row["tokens_per_second"]


@pytest.mark.parametrize("recompute", ["true", "false"])
def test_the_gap_to_what_sampling_recorded_is_logged(loop, monkeypatch, recompute):
    loop = loop(f"ppo.recompute_logprobs={recompute}", "ppo.iterations=1")

    def off_by_a_half(*args, real=ResponseSampler.sample, **kwargs):
        rollout = real(*args, **kwargs)
        return dataclasses.replace(rollout, logprobs=rollout.logprobs - 0.5 * rollout.sequences.response_mask)

    monkeypatch.setattr(ResponseSampler, "sample", off_by_a_half)
    loop.train()
    (row,) = rows_of(loop)
    assert row["rollout_gap"] == pytest.approx(0.5, abs=1e-3)


# Whole runs


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_frozen_means_frozen(loop, estimator):
    loop = loop(f"ppo.advantage_estimator={estimator}")
    backbone = loop.backbone
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}

    def state():
        return {**backbone.state_dict(), **dict(backbone.named_buffers())}

    before = {name: x.clone() for name, x in state().items()}
    assert any("absmax" in name for name in before), "the 4-bit weights' scales count too"
    loop.train()
    after = state()
    assert {name for name, x in before.items() if not torch.equal(x, after[name])} == trained
    learning = {"policy", "critic"} if estimator == "gae" else {"policy"}
    assert {name.split(".")[-2] for name in trained if "lora" in name} == learning
    assert {name for name in trained if "lora" not in name} == (
        {"heads.critic.weight"} if estimator == "gae" else set()
    )
    assert ("critic" in backbone.roles) == (estimator == "gae")


def test_critic_warmup_leaves_the_policy_untouched(loop):
    for warmup, policy_stays in [(2, True), (1, False)]:
        made = loop("ppo.iterations=3", f"ppo.critic_warmup_iterations={warmup}", "ppo.weight_decay=0.1")
        made.configure(iterations=2)
        before = {role: weights(made.backbone, role) for role in ("policy", "critic")}
        made.train()
        assert equal(before["policy"], weights(made.backbone, "policy")) == policy_stays
        assert not equal(before["critic"], weights(made.backbone, "critic"))
        assert ["policy_loss" in row for row in rows_of(made)] == [False, not policy_stays]


# When it ends


def test_kl_beyond_the_rule_ends_the_run_with_what_is_due(loop, monkeypatch):
    made = loop("ppo.iterations=6", "ppo.learning_rate=0.01", "ppo.eval_every=4", "ppo.save_every=4")
    saved = []
    monkeypatch.setattr(loop_module, "save_checkpoint", lambda folder, state, *_: saved.append(state.iteration))
    made.train()
    kl = [row["kl"] for row in rows_of(made) if "kl" in row]
    limit = (max(kl[:2]) + kl[2]) / 2
    assert kl[2] > limit > kl[1], "it grows"

    stopped = loop(
        "ppo.iterations=6",
        "ppo.learning_rate=0.01",
        "ppo.eval_every=4",
        "ppo.save_every=4",
        f"ppo.stop_when.kl={limit}",
    )
    saved.clear()
    stopped.train()
    rows = rows_of(stopped)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 3], "the last is an evaluation"
    assert "eval_reward" in rows[-1]
    assert saved == [3]
    assert stopped.state.reason_to_stop(stopped.config) == (
        f"KL {kl[2]:.2f} nats a response (ppo.stop_when.kl {limit:g})"
    )


def test_evaluations_worse_than_the_best_end_the_run(loop, monkeypatch):
    made = loop(
        *("ppo.iterations=9", "ppo.eval_every=1", "ppo.save_every=100", "ppo.kl_coef=0.0"),
        "ppo.stop_when.held_out_worse=2",
    )
    saved = []
    monkeypatch.setattr(loop_module, "save_checkpoint", lambda folder, state, *_: saved.append(state.iteration))
    rewards = iter([1.0, 0.5, 1.0, 0.5, 2.0, 1.9, 1.95])  # an equal or a better one starts the count anew
    made.parts.held_out.reward = lambda rollout, prompts, trunk: torch.full((len(prompts),), next(rewards))
    made.train()
    assert [row["eval_reward"] for row in rows_of(made) if "eval_reward" in row] == pytest.approx(
        [1.0, 0.5, 1.0, 0.5, 2.0, 1.9, 1.95]
    )
    assert made.state.best.row["iteration"] == 5
    assert saved == [7]
    assert "evaluations in a row worse than the best: 2 " in made.state.reason_to_stop(made.config)


def test_what_varies_while_the_critic_warms_up_counts_for_nothing(loop):
    made = loop("ppo.iterations=9", "ppo.critic_warmup_iterations=2", "ppo.eval_every=1", "ppo.kl_coef=0.0")
    rewards = iter([1.0, 0.5, 0.5, 0.5, 1.5])
    made.parts.held_out.reward = lambda rollout, prompts, trunk: torch.full((len(prompts),), next(rewards))
    counts = []
    for iteration in range(5):
        made.evaluate(iteration)
        counts.append(made.state.worse)
        if iteration < 4:
            assert made.state.improved(made.config) is False
    assert counts == [0, 0, 0, 1, 0]
    assert made.state.improved(made.config) is True


def test_early_stop_ends_the_iteration_and_not_the_run(loop):
    sets = "ppo.iterations=3", "ppo.num_ppo_epochs=2", "ppo.learning_rate=0.01"
    made = loop(*sets, "ppo.early_stop_kl=1e-6")
    made.train()
    # The first minibatch of an iteration is on-policy, the second no longer is.
    assert [(row["iteration"], row["step"]) for row in rows_of(made)] == [(1, 2), (2, 4), (3, 6)]
    made = loop(*sets, "ppo.early_stop_kl=1e6", "ppo.iterations=2")
    made.train()
    assert [(row["iteration"], row["step"]) for row in rows_of(made)] == [(1, 4), (2, 8)]


@pytest.mark.parametrize("early_stop_kl", ["null", "1e-6"])
def test_rates_end_at_their_end_also_when_updates_stop_early(loop, early_stop_kl):
    made = loop(
        *("ppo.iterations=4", "ppo.num_ppo_epochs=2", "ppo.learning_rate=0.01", "ppo.lr_scheduler_type=linear"),
        *("ppo.critic_learning_rate=0.04", f"ppo.early_stop_kl={early_stop_kl}"),
    )
    made.train()
    assert [row["learning_rate"] for row in rows_of(made)] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [group["lr"] for group in made.learner.optimizer.param_groups] == [0, 0]
    assert [group["initial_lr"] for group in made.learner.optimizer.param_groups] == [0.01, 0.04]


def test_a_run_that_goes_further_takes_up_the_longer_schedule(loop):
    """At the end of the shorter one the rate was 0: an iteration would be for nothing."""
    made = loop(
        *("ppo.iterations=2", "ppo.learning_rate=0.01", "ppo.critic_learning_rate=null"),
        "ppo.lr_scheduler_type=linear",
    )
    for _ in range(2):
        made.learner.optimizer.step()
        made.learner.schedule()
    assert made.learner.learning_rate == 0
    longer = made.config.model_copy(update={"iterations": 8})
    learner = Learner(made.backbone, longer, made.backbone.trained_roles, made.folder, made.learner.processes)
    learner.load_state_dict(made.learner.state_dict())
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([0.0075, 0.0075])
    learner.schedule()
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([0.00625, 0.00625])


def test_adaptive_kl_follows_the_logged_kl(loop):
    made = loop("ppo.iterations=4", "ppo.learning_rate=0.01", "ppo.kl_target=0.01", "ppo.kl_horizon=100")
    made.train()
    rows = rows_of(made)
    assert rows[0]["kl"] < 0.01 < rows[-1]["kl"], "below the target at first, above it later"
    assert rows[1]["kl_coef"] < rows[0]["kl_coef"] == made.config.kl_coef
    for i, row in enumerate(rows):
        expected = reference.adaptive_kl(made.config.kl_coef, 0.01, 100, [(r["kl"], 8) for r in rows[:i]])
        assert row["kl_coef"] == pytest.approx(expected)
    assert rows[-1]["kl_coef"] > min(row["kl_coef"] for row in rows)


def test_a_fixed_coefficient_stays(loop):
    made = loop("ppo.learning_rate=0.01")
    made.train()
    assert {row["kl_coef"] for row in rows_of(made)} == {0.05}


def test_normalized_clipped_and_penalised_rewards_are_what_the_algorithm_sees(loop, monkeypatch):
    made = loop(
        *("ppo.iterations=1", "ppo.normalize_reward=true", "ppo.reward_clip=1.2", "ppo.missing_eos_penalty=3.0"),
        reward=lambda rollout, prompts, trunk: 100 + torch.arange(8.0),
    )
    finished = torch.tensor([True, False] * 4)
    monkeypatch.setattr(
        ResponseSampler,
        "sample",
        lambda *args, real=ResponseSampler.sample, **kwargs: dataclasses.replace(
            real(*args, **kwargs), finished=finished
        ),
    )
    seen = []
    monkeypatch.setattr(
        made.algorithm,
        "experience",
        lambda scored, scores, kl_coef, real=made.algorithm.experience: (
            seen.append(scores) or real(scored, scores, kl_coef)
        ),
    )
    made.train()
    x = torch.arange(8.0)
    expected = ((x - x.mean()) / x.std(correction=0)).clamp(-1.2, 1.2) - 3.0 * ~finished
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    assert rows_of(made)[0]["reward"] == 103.5  # what is logged is the raw score


def test_the_experience_is_let_go_before_the_next_rollout(loop, monkeypatch):
    made = loop("ppo.iterations=3")
    alive, seen = [], []

    def experience(*args, real=made.algorithm.experience):
        kept = real(*args)
        alive.append(weakref.ref(kept))
        return kept

    def sample(*args, real=ResponseSampler.sample, **kwargs):
        gc.collect()
        seen.append([reference() for reference in alive])
        return real(*args, **kwargs)

    monkeypatch.setattr(made.algorithm, "experience", experience)
    monkeypatch.setattr(ResponseSampler, "sample", sample)
    made.train()
    assert [len(row) for row in seen] == [0, 1, 2]
    assert not any(isinstance(kept, Experience) for row in seen for kept in row)


def test_checkpoints_and_evaluations_come_when_due(loop, monkeypatch):
    made = loop("ppo.iterations=5", "ppo.eval_every=2", "ppo.save_every=3")
    saved = []
    monkeypatch.setattr(loop_module, "save_checkpoint", lambda folder, state, *_: saved.append(state.iteration))
    made.train()
    assert [row["iteration"] for row in rows_of(made) if "eval_reward" in row] == [2, 4, 5]
    assert saved == [3, 5]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_the_policy_learns_what_is_rewarded(loop, tiny_model, sign, estimator):
    """A random model, paid for each token of one half of its vocabulary and fined for those of the other."""

    def score(rollout, prompts, trunk):
        sequences = rollout.sequences
        spans = zip(sequences.tokens, sequences.prompt_lengths, sequences.lengths, strict=True)
        return sign * torch.stack([(row[start:end] % 2 * 2 - 1).float().sum() for row, start, end in spans])

    made = loop(
        f"model.name={tiny_model('llama')}",
        f"ppo.advantage_estimator={estimator}",
        "data.max_prompt_length=100",
        "ppo.iterations=5",
        "ppo.batch_size=32",
        "ppo.num_ppo_epochs=4",
        "ppo.num_mini_batches=1",
        "ppo.response_length=8",
        "ppo.learning_rate=0.02",
        "ppo.kl_coef=0.0",
        reward=score,
        scale=0.0,
    )
    made.backbone.value_head.weight.data.zero_()
    made.train()
    rewards = [row["reward"] for row in rows_of(made)]
    assert rewards[-1] > rewards[0] + 1.5, rewards

"""A scored rollout becomes experience: every number of every algorithm against a slow second computation."""

import math

import ppo_reference as reference
import pytest
import torch

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.generation.sample import Rollout
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.algorithms import ALGORITHMS, GAE, make_algorithm
from lorarlhf.rl.algorithms.grpo import within_group
from lorarlhf.rl.algorithms.rloo import above_the_others
from lorarlhf.rl.experience import ScoredRollout

LENGTHS = [4, 1, 0, 6, 3, 2]
PROMPTS = [[7, 8], [9], [3, 3, 3], [1], [2, 2], [5]]
KL_COEF = 0.3
SCORES = torch.tensor([1.5, -2.0, 0.25, 3.0, 3.5, -1.0])


@pytest.fixture
def scored():
    """Padding holds garbage."""
    generator = torch.Generator().manual_seed(5)
    shape = len(LENGTHS), max(LENGTHS)
    logprobs = -torch.rand(shape, generator=generator) * 3
    sequences = TokenBatch.from_lists(PROMPTS, [list(range(10, 10 + n)) for n in LENGTHS])
    return ScoredRollout(
        rollout=Rollout(sequences, logprobs, logprobs, torch.ones(len(LENGTHS), dtype=torch.bool)),
        scores=SCORES + 100,  # raw: not what an algorithm is to look at
        logprobs=logprobs,
        entropy=-logprobs,
        ref_logprobs=logprobs + 0.5 * torch.randn(shape, generator=generator),
        values=torch.randn(shape, generator=generator),
    )


def experience_of(scored, **settings):
    settings = {"batch_size": 6, "num_mini_batches": 1, "gamma": 0.9, "lam": 0.8, **settings}
    return make_algorithm(PPOConfig(**settings)).experience(scored, SCORES, KL_COEF)


def slow_kl(scored, estimator="k1"):
    """KL of each token, row by row."""
    rows = (reference.ragged(table.tolist(), LENGTHS) for table in (scored.logprobs, scored.ref_logprobs))
    return [
        [reference.kl_estimate(p, q, estimator) for p, q in zip(*pair, strict=True)] for pair in zip(*rows, strict=True)
    ]


def assert_rows(actual, mask, rows):
    expected = torch.tensor(reference.padded(rows, max(LENGTHS)))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual[~mask].eq(0).all()


# GAE


@pytest.mark.parametrize(
    "changes",
    [{}, {"kl_estimator": "k3"}, {"whiten_rewards": True}, {"gamma": 1.0, "lam": 1.0}, {"kl_in": "loss"}],
)
def test_gae_against_the_slow_computation(scored, changes):
    experience = experience_of(scored, **changes)
    kl_coef = 0.0 if changes.get("kl_in") == "loss" else KL_COEF
    kl = slow_kl(scored, changes.get("kl_estimator", "k1"))
    rewards = [reference.token_rewards(s, row, kl_coef) for s, row in zip(SCORES.tolist(), kl, strict=True)]
    if changes.get("whiten_rewards"):
        rewards = reference.whiten(rewards, shift_mean=False)
    values = reference.ragged(scored.values.tolist(), LENGTHS)
    gamma, lam = changes.get("gamma", 0.9), changes.get("lam", 0.8)
    advantages = [reference.advantages(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    returns = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(advantages, values, strict=True)]
    assert_rows(experience.advantages, experience.mask, reference.whiten(advantages))
    assert_rows(experience.returns, experience.mask, returns)
    assert experience.logprobs is scored.logprobs
    assert experience.values is scored.values
    assert experience.mask.sum(1).tolist() == LENGTHS
    assert (experience.ref_logprobs is not None) == (kl_coef == 0.0)


def test_gae_without_a_difference_pays_no_penalty(scored):
    same = ScoredRollout(
        scored.rollout, scored.scores, scored.logprobs, scored.entropy, scored.logprobs, torch.zeros_like(scored.values)
    )
    experience = experience_of(same, lam=1.0, gamma=1.0)
    torch.testing.assert_close(experience.returns, torch.where(experience.mask, SCORES.unsqueeze(1), 0.0))


def test_gae_whitens_once_for_the_whole_batch(scored):
    experience = experience_of(scored)
    tokens = experience.advantages[experience.mask]
    assert tokens.mean().item() == pytest.approx(0, abs=1e-6)
    assert math.sqrt(tokens.square().mean().item()) == pytest.approx(1, rel=1e-5)
    half = experience.select(torch.tensor([0, 1]))
    assert half.advantages[half.mask].mean().item() != pytest.approx(0, abs=1e-3)


# RLOO and GRPO


def groups(values, size):
    return [values[i : i + size] for i in range(0, len(values), size)]


@pytest.mark.parametrize("group", [2, 3, 6])
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_rloo_against_the_slow_computation(scored, group, kl_in):
    experience = experience_of(scored, advantage_estimator="rloo", num_generations=group, kl_in=kl_in)
    kl = slow_kl(scored) if kl_in == "reward" else [[] for _ in LENGTHS]
    rewards = [s - KL_COEF * math.fsum(row) for s, row in zip(SCORES.tolist(), kl, strict=True)]
    expected = [a for part in groups(rewards, group) for a in reference.leave_one_out(part)]
    assert_rows(experience.advantages, experience.mask, [[a] * n for a, n in zip(expected, LENGTHS, strict=True)])
    assert experience.values is experience.returns is experience.trunk is None
    assert (experience.ref_logprobs is scored.ref_logprobs) == (kl_in == "loss")


@pytest.mark.parametrize("group", [2, 3, 6])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("kl_in", [None, "reward"])
def test_grpo_against_the_slow_computation(scored, group, scale, kl_in):
    experience = experience_of(
        scored, advantage_estimator="grpo", num_generations=group, scale_rewards=scale, kl_in=kl_in
    )
    kl = slow_kl(scored) if kl_in == "reward" else [[] for _ in LENGTHS]  # by default it is in the loss
    rewards = [s - KL_COEF * math.fsum(row) for s, row in zip(SCORES.tolist(), kl, strict=True)]
    deviation = {"group": reference.sample_deviation, "batch": lambda _: reference.sample_deviation(rewards)}
    expected = [
        a
        for part in groups(rewards, group)
        for a in reference.group_relative(part, deviation[scale](part) if scale != "none" else None)
    ]
    assert_rows(experience.advantages, experience.mask, [[a] * n for a, n in zip(expected, LENGTHS, strict=True)])
    assert (experience.ref_logprobs is scored.ref_logprobs) == (kl_in is None)


def test_worked_by_hand():
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert above_the_others(rewards, 3).tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]
    assert within_group(rewards, 3, "none").tolist() == [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    scaled = within_group(rewards, 3, "group")
    assert scaled[:3].tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5], rel=1e-3)
    assert scaled[3:].tolist() == [0.0, 0.0, 0.0], "alike, they teach nothing"


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_a_constant_added_to_all_scores_changes_nothing(scored, estimator):
    settings = {"advantage_estimator": estimator, "num_generations": 3}
    algorithm = make_algorithm(PPOConfig(batch_size=6, num_mini_batches=1, **settings))
    one, other = (algorithm.experience(scored, SCORES + constant, KL_COEF).advantages for constant in (0.0, 7.0))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_only_gae_has_a_critic_and_it_alone_learns_while_it_warms_up():
    assert [name for name, kind in ALGORITHMS.items() if kind.has_critic] == ["gae"]
    gae = GAE(PPOConfig(critic_warmup_iterations=2))
    assert [gae.roles(i) for i in (0, 1, 2)] == [("critic",), ("critic",), ("policy", "critic")]
    for name in ("rloo", "grpo"):
        algorithm = make_algorithm(PPOConfig(advantage_estimator=name, critic_warmup_iterations=2))
        assert algorithm.roles(0) == ("policy",)


# Both kinds


def test_select_cuts_to_the_longest_of_the_rows(scored):
    experience = experience_of(scored, kl_in="loss")
    rows = torch.tensor([4, 0])
    some = experience.select(rows)
    assert some.sequences.tokens.tolist() == [[2, 2, 10, 11, 12, 0], [7, 8, 10, 11, 12, 13]]
    assert some.mask.sum(1).tolist() == [3, 4]
    for name in ("logprobs", "values", "advantages", "returns", "ref_logprobs"):
        assert torch.equal(getattr(some, name), getattr(experience, name)[rows, :4]), name
    none = experience.select(torch.tensor([], dtype=torch.long))
    assert none.mask.numel() == 0

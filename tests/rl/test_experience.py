"""A scored rollout becomes experience: every number against a slow second computation."""

import math

import ppo_reference as reference
import pytest
import torch

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.rl.experience import build_experience

LENGTHS = [4, 1, 0, 6, 3]
PROMPTS = [[7, 8], [9], [3, 3, 3], [1], [2, 2]]
SETTINGS = {"kl_coef": 0.3, "kl_estimator": "k1", "gamma": 0.9, "lam": 0.8, "whiten_rewards": False}


@pytest.fixture
def scored():
    """TokenBatch and, by name, what `build_experience` takes; padding holds garbage."""
    generator = torch.Generator().manual_seed(5)
    shape = len(LENGTHS), max(LENGTHS)
    logprobs = -torch.rand(shape, generator=generator) * 3
    return {
        "sequences": TokenBatch.from_lists(PROMPTS, [list(range(10, 10 + n)) for n in LENGTHS]),
        "logprobs": logprobs,
        "ref_logprobs": logprobs + 0.5 * torch.randn(shape, generator=generator),
        "values": torch.randn(shape, generator=generator),
        "scores": torch.randn(len(LENGTHS), generator=generator) * 2,
    }


def expected_experience(scored, settings):
    """Advantages before whitening, returns and KL, row by row in float64."""
    rows = {name: reference.ragged(scored[name].tolist(), LENGTHS) for name in ("logprobs", "ref_logprobs", "values")}
    kl = [
        [reference.kl_estimate(p, q, settings["kl_estimator"]) for p, q in zip(*pair, strict=True)]
        for pair in zip(rows["logprobs"], rows["ref_logprobs"], strict=True)
    ]
    rewards = [
        reference.token_rewards(score, row, settings["kl_coef"])
        for score, row in zip(scored["scores"].tolist(), kl, strict=True)
    ]
    if settings["whiten_rewards"]:
        rewards = reference.whiten(rewards, shift_mean=False)
    advantages = [
        reference.advantages(r, v, settings["gamma"], settings["lam"])
        for r, v in zip(rewards, rows["values"], strict=True)
    ]
    returns = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(advantages, rows["values"], strict=True)]
    return advantages, returns, kl


@pytest.mark.parametrize("changes", [{}, {"kl_estimator": "k3"}, {"whiten_rewards": True}, {"gamma": 1.0, "lam": 1.0}])
def test_experience_against_the_slow_computation(scored, changes):
    settings = SETTINGS | changes
    experience = build_experience(**scored, **settings)
    advantages, returns, kl = expected_experience(scored, settings)
    width = max(LENGTHS)
    for actual, rows in [
        (experience.advantages, reference.whiten(advantages)),
        (experience.returns, returns),
        (experience.kl, kl),
    ]:
        expected = torch.tensor(reference.padded(rows, width))
        torch.testing.assert_close(torch.where(experience.mask, actual, 0.0), expected, rtol=1e-5, atol=1e-5)
        assert actual[~experience.mask].eq(0).all()


def test_what_was_sampled_and_valued_is_kept(scored):
    experience = build_experience(**scored, **SETTINGS)
    assert experience.logprobs is scored["logprobs"]
    assert experience.values is scored["values"]
    assert experience.mask.sum(1).tolist() == LENGTHS


def test_no_kl_penalty_without_a_difference(scored):
    same = scored | {"ref_logprobs": scored["logprobs"], "values": torch.zeros_like(scored["values"])}
    experience = build_experience(**same, **SETTINGS | {"lam": 1.0, "gamma": 1.0})
    assert experience.kl.eq(0).all()
    expected = torch.where(experience.mask, scored["scores"].unsqueeze(1), 0.0)
    torch.testing.assert_close(experience.returns, expected)


def test_select_cuts_to_the_longest_of_the_rows(scored):
    experience = build_experience(**scored, **SETTINGS)
    rows = torch.tensor([4, 0])
    some = experience.select(rows)
    assert some.sequences.tokens.tolist() == [[2, 2, 10, 11, 12, 0], [7, 8, 10, 11, 12, 13]]
    assert some.mask.sum(1).tolist() == [3, 4]
    for name in ("logprobs", "values", "advantages", "returns", "kl"):
        assert torch.equal(getattr(some, name), getattr(experience, name)[rows, :4]), name


def test_advantages_are_whitened_once_for_the_whole_batch(scored):
    experience = build_experience(**scored, **SETTINGS)
    tokens = experience.advantages[experience.mask]
    assert tokens.mean().item() == pytest.approx(0, abs=1e-6)
    assert math.sqrt(tokens.square().mean().item()) == pytest.approx(1, rel=1e-5)
    half = experience.select(torch.tensor([0, 1]))
    assert half.advantages[half.mask].mean().item() != pytest.approx(0, abs=1e-3)

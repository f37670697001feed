import math

import ppo_reference as reference
import pytest
import torch
from torch.testing import assert_close

from lorarlhf.rl.kl import adapted_kl_coef, kl_estimate

POLICY = [0.5, 0.25, 0.2, 0.05]
REFERENCE = [0.1, 0.4, 0.3, 0.2]


@pytest.mark.parametrize(
    ("estimator", "p", "q", "expected"),
    [
        ("k1", 0.5, 0.25, math.log(2)),
        ("k1", 0.25, 0.5, -math.log(2)),  # one sample of k1 may be negative
        ("k3", 0.5, 0.25, 0.5 - 1 + math.log(2)),
        ("k3", 0.25, 0.5, 2 - 1 - math.log(2)),
        ("k1", 0.3, 0.3, 0.0),
        ("k3", 0.3, 0.3, 0.0),
    ],
)
def test_estimators_worked_by_hand(estimator, p, q, expected):
    result = kl_estimate(torch.tensor([[math.log(p)]]), torch.tensor([[math.log(q)]]), estimator)
    assert_close(result, torch.tensor([[expected]]))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimators_equal_the_reference(batch, estimator):
    logprobs = reference.ragged(batch.logprobs.tolist(), batch.lengths)
    ref_logprobs = reference.ragged(batch.old_logprobs.tolist(), batch.lengths)
    expected = [
        [reference.kl_estimate(p, q, estimator) for p, q in zip(*rows, strict=True)]
        for rows in zip(logprobs, ref_logprobs, strict=True)
    ]
    result = kl_estimate(batch.logprobs, batch.old_logprobs, estimator)
    assert result.shape == batch.mask.shape
    assert result.dtype == torch.float32
    flat = torch.tensor([x for row in expected for x in row])
    assert_close(result[batch.mask], flat, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expectation_under_the_policy_is_the_exact_kl(estimator):
    p, q = torch.tensor([POLICY]), torch.tensor([REFERENCE])
    expected = reference.exact_kl(POLICY, REFERENCE)
    assert expected > 0.5  # and KL(reference || policy) differs, so that a swap shows
    assert abs(expected - reference.exact_kl(REFERENCE, POLICY)) > 0.05
    assert_close((p * kl_estimate(p.log(), q.log(), estimator)).sum().item(), expected, atol=1e-6, rtol=1e-5)


def test_k3_is_never_negative_and_k1_is():
    p, q = torch.tensor([POLICY]), torch.tensor([REFERENCE])
    assert (kl_estimate(p.log(), q.log(), "k3") > 0).all()
    assert (kl_estimate(p.log(), q.log(), "k1") < 0).any()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_equal_logprobs_are_exactly_zero(batch, estimator):
    assert (kl_estimate(batch.logprobs, batch.logprobs, estimator) == 0).all()


@pytest.mark.parametrize(
    ("kl", "responses", "expected"),
    [
        (6.0, 500, 0.2),  # on target
        (6.6, 500, 0.201),  # 10% over: 0.2 * (1 + 0.1 * 500 / 10000)
        (5.4, 500, 0.199),
        (600.0, 500, 0.202),  # the error is clipped at 20%
        (0.0, 500, 0.198),
        (-3.0, 500, 0.198),  # an estimate may be negative
        (6.6, 1000, 0.202),  # twice the responses, twice the step
        (600.0, 0, 0.2),
    ],
)
def test_adaptive_coefficient_worked_by_hand(kl, responses, expected):
    assert_close(adapted_kl_coef(0.2, kl, 6.0, responses, 10_000), expected, atol=1e-9, rtol=0)


def test_adaptive_coefficient_equals_the_reference_over_many_updates():
    generator = torch.Generator().manual_seed(0)
    steps = [(kl, 64) for kl in (12 * torch.rand(50, generator=generator)).tolist()]
    coefficient = 0.05
    for done, (kl, responses) in enumerate(steps, start=1):
        coefficient = adapted_kl_coef(coefficient, kl, 4.0, responses, 2_000)
        expected = reference.adaptive_kl(0.05, 4.0, 2_000, steps[:done])
        assert_close(coefficient, expected, atol=0, rtol=1e-9)

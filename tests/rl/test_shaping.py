"""From raw scores to what a response is worth: normalisation, clipping, penalty."""

import statistics

import numpy as np
import pytest
import torch

from lorarlhf.rl.shaping import RunningMoments, shape_scores

# Running moments


def test_moments_are_those_of_all_scores_so_far():
    generator = torch.Generator().manual_seed(3)
    batches = [5 + 3 * torch.randn(n, generator=generator) for n in (7, 1, 64, 2)]
    moments = RunningMoments()
    for i, batch in enumerate(batches, start=1):
        moments.update(batch)
        everything = torch.cat(batches[:i]).double().numpy()
        assert moments.count == len(everything)
        assert moments.mean == pytest.approx(np.mean(everything), rel=1e-6)
        assert moments.std == pytest.approx(np.std(everything), rel=1e-6, abs=1e-6)


def test_moments_do_not_lose_a_small_spread_around_a_large_mean():
    moments = RunningMoments()
    for batch in ([10_000.0, 10_002.0], [10_001.0, 10_003.0]):
        moments.update(torch.tensor(batch))
    assert moments.std == pytest.approx(statistics.pstdev([0, 2, 1, 3]))


def moments_of(*batches):
    moments = RunningMoments()
    for batch in batches:
        moments.update(batch)
    return moments


def test_normalized_scores_of_the_first_batch_have_mean_0_and_variance_1():
    scores = torch.tensor([1.0, 4.0, -2.0, 8.0])
    shaped = shape_scores(scores, torch.ones(4, dtype=torch.bool), moments_of(scores), None, None)
    assert shaped.mean().item() == pytest.approx(0, abs=1e-6)
    assert shaped.std(correction=0).item() == pytest.approx(1)


def test_equal_scores_normalize_to_0():
    scores = torch.full((4,), 3.0)
    assert shape_scores(scores, torch.ones(4, dtype=torch.bool), moments_of(scores), None, None).tolist() == [0.0] * 4


def test_later_batches_are_measured_against_all_before():
    finished = torch.ones(2, dtype=torch.bool)
    moments = moments_of(torch.tensor([-1.0, 1.0]), torch.tensor([9.0, 11.0]))
    shaped = shape_scores(torch.tensor([9.0, 11.0]), finished, moments, None, None)
    everything = [-1.0, 1.0, 9.0, 11.0]
    mean, std = statistics.mean(everything), statistics.pstdev(everything)
    assert shaped.tolist() == pytest.approx([(9 - mean) / std, (11 - mean) / std])


# Order: normalise, clip, penalise


def test_the_penalty_is_taken_after_clipping():
    scores, finished = torch.tensor([5.0, 5.0, -5.0, 0.5]), torch.tensor([True, False, False, True])
    assert shape_scores(scores, finished, None, 1.0, 2.0).tolist() == [1.0, -1.0, -3.0, 0.5]


def test_clipping_follows_normalisation():
    scores = torch.tensor([100.0, 100.0, 100.0, 104.0])
    shaped = shape_scores(scores, torch.ones(4, dtype=torch.bool), moments_of(scores), 1.5, None)
    assert shaped[3].item() == 1.5
    assert shaped[0].item() == pytest.approx(-1 / 3**0.5)


def test_nothing_asked_for_changes_nothing():
    scores = torch.tensor([5.0, -7.0])
    assert torch.equal(shape_scores(scores, torch.tensor([False, True]), None, None, None), scores)

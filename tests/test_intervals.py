"""Intervals against the normal distribution, a published table, and simulation."""

import math

import numpy as np
import pytest

from lorarlhf.intervals import bootstrap, mean, wilson


def test_bootstrap_covers_and_repeats():
    """The interval of a mean of N coin flips is that of the normal distribution, and one seed gives one interval."""
    flips = (np.arange(400) % 4 == 0).astype(float)
    found = bootstrap(lambda items: float(items.mean()), flips, seed=1)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.value == 0.25
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)
    assert found == bootstrap(lambda items: float(items.mean()), flips, seed=1)
    assert found != bootstrap(lambda items: float(items.mean()), flips, seed=2)
    empty = bootstrap(lambda items: math.nan, flips[:0])
    assert math.isnan(empty.value)
    assert math.isnan(empty.low)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_the_table_of_newcombe_1998(count, of, low, high):
    """His method 3, four examples."""
    found = wilson(count / of, of)
    assert found.value == count / of
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("true", "of"), [(0.5, 30), (0.9, 30), (0.98, 60)])
def test_wilson_covers(true, of):
    counts = np.random.default_rng(0).binomial(of, true, size=2000)
    intervals = [wilson(count / of, of) for count in counts]
    covered = np.mean([found.low <= true <= found.high for found in intervals])
    assert 0.92 < covered < 0.985


@pytest.mark.parametrize("of", [1, 10])
def test_means_cover_also_when_they_are_few(of):
    """Five numbers each: the normal distribution would hold 88 of 100."""
    drawn = np.random.default_rng(0).standard_normal((1000, of, 5))
    together = [all(found.low <= 0 <= found.high for found in (mean(row, of) for row in rows)) for rows in drawn]
    assert 0.935 < np.mean(together) < 0.965


def test_a_mean_of_one_has_no_interval():
    assert math.isnan(mean(np.array([2.0])).low)
    assert mean(np.array([2.0])).value == 2.0
    assert mean(np.array([2.0, 2.0])).high == 2.0


def test_nothing_measured():
    assert math.isnan(wilson(0.0, 0).low)
    assert (wilson(1.0, 10).high, wilson(0.0, 10).low) == (1.0, 0.0)

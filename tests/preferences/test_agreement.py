"""The coefficients against published tables, and the report on votes counted by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from lorarlhf.errors import UserError
from lorarlhf.intervals import SAMPLES, Estimate, wilson
from lorarlhf.preferences.agreement import (
    Share,
    Vote,
    cohen_kappa,
    decided_agreement,
    fleiss_kappa,
    flip_rate,
    krippendorff_alpha,
    majority_flip_rate,
    measure_agreement,
    raw_agreement,
    suggested_smoothing,
)

# The table of Fleiss 1971 as usually reproduced: ten items, fourteen votes each, five categories.
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: four observers, twelve units, gaps.
KRIPPENDORFF = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def codes(table):
    """[N, 2] categories from a contingency table."""
    return np.array([cell for cell, count in np.ndenumerate(np.array(table)) for _ in range(count)])


def counts(observers, categories):
    return np.array([[column.count(category) for category in categories] for column in zip(*observers, strict=True)])


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ([[20, 5], [10, 15]], 0.4),  # the usual two by two example: 0.7 observed, 0.5 by chance
        ([[45, 15], [25, 15]], 0.1304),  # the same observed agreement as the next, and less of it above chance
        ([[25, 35], [5, 35]], 0.2593),
        ([[88, 14, 18], [10, 40, 10], [2, 6, 12]], 0.4915),  # Cohen 1960: 0.70 observed, 0.41 by chance
    ],
)
def test_cohen_kappa(table, kappa):
    assert cohen_kappa(codes(table)) == pytest.approx(kappa, abs=5e-5)


def test_fleiss_kappa():
    assert raw_agreement(FLEISS) == pytest.approx(0.378, abs=5e-4)
    assert fleiss_kappa(FLEISS) == pytest.approx(0.2099, abs=5e-5)


def test_krippendorff_alpha():
    table = counts(KRIPPENDORFF, "12345")
    assert krippendorff_alpha(table[table.sum(1) >= 2]) == pytest.approx(0.743, abs=5e-4)
    # Section A of the same paper, two observers, ten units, binary: coincidences of 10, 4, 4 and 2.
    assert krippendorff_alpha(counts(("0100000000", "1110010010"), "01")) == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize("statistic", [fleiss_kappa, krippendorff_alpha])
def test_perfect_and_undefined(statistic):
    assert statistic(np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3]])) == pytest.approx(1.0)
    assert math.isnan(statistic(np.array([[3, 0, 0], [3, 0, 0]])))  # only one answer was ever given
    assert math.isnan(statistic(np.zeros((0, 3), dtype=int)))
    assert cohen_kappa(codes([[2, 0], [0, 3]])) == pytest.approx(1.0)
    assert math.isnan(cohen_kappa(codes([[5, 0], [0, 0]])))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2, 0.3])
def test_flip_rate_finds_the_noise_that_was_put_in(noise):
    assert flip_rate(*np.array([(1 - noise) ** 2 + noise**2, 1])) == pytest.approx(noise, abs=1e-12)
    generator = np.random.default_rng(0)
    better = generator.integers(0, 2, size=20_000)
    voted = better[:, None] ^ (generator.random((20_000, 3)) < noise)
    table = np.stack([(voted == 0).sum(1), (voted == 1).sum(1), np.zeros(20_000, dtype=int)], 1)
    assert flip_rate(*decided_agreement(table)) == pytest.approx(noise, abs=0.01)
    wrong = (voted.sum(1) >= 2) != better
    assert majority_flip_rate(noise, 3) == pytest.approx(wrong.mean(), abs=0.01)


def test_noise_at_the_edges():
    assert flip_rate(5, 10) == flip_rate(1, 10) == 0.5
    assert math.isnan(flip_rate(0, 0))
    assert decided_agreement(np.array([[2, 0, 1], [1, 1, 0], [0, 0, 3], [1, 0, 2]])) == (1, 2)
    assert majority_flip_rate(0.2, 1) == pytest.approx(0.2)
    assert majority_flip_rate(0.2, 2) == pytest.approx(0.2)  # a split of two is drawn by lot
    assert majority_flip_rate(0.1, 3) == pytest.approx(3 * 0.01 * 0.9 + 0.001)
    assert (suggested_smoothing(0.1234), suggested_smoothing(0.47)) == (0.12, None)


def votes(**answers):
    """`votes(ann="ab=")`: one letter a pair, a dot for none."""
    return [
        Vote(f"p{i}", name, "tie" if answer == "=" else answer)
        for name, given in answers.items()
        for i, answer in enumerate(given)
        if answer != "."
    ]


def test_two_annotators():
    found = measure_agreement(votes(ann="aabb=ab", bob="aabab.."))
    assert (found.pairs, found.shared) == (7, 5)
    assert found.raw.value == pytest.approx(3 / 5)
    # 3 of 5 observed; by chance 2/5 * 3/5 (a) + 2/5 * 2/5 (b) + 1/5 * 0 (tie) = 0.4
    assert found.cohen.value == pytest.approx((0.6 - 0.4) / 0.6)
    assert found.noise.value == pytest.approx((1 - math.sqrt(2 * 0.75 - 1)) / 2)
    assert found.noise_from == "annotators"
    assert found.majority_noise is None
    assert found.disputed == [("p3", Counter(a=1, b=1)), ("p4", Counter(tie=1, b=1))]
    ann, bob = found.annotators
    assert (ann.name, ann.votes, ann.ties, ann.with_majority) == ("ann", 7, 1, Share(3, 5))
    assert (bob.name, bob.votes, bob.ties, bob.with_majority) == ("bob", 5, 0, Share(3, 5))


def test_three_annotators_with_gaps():
    found = measure_agreement(votes(ann="aab.", bob="aa=b", cat="abab"))
    assert found.cohen is None
    assert found.shared == 4
    complete = np.array([[3, 0, 0], [2, 1, 0], [1, 1, 1]])
    assert found.fleiss.value == pytest.approx(fleiss_kappa(complete))
    assert found.alpha.value == pytest.approx(krippendorff_alpha(np.vstack([complete, [0, 2, 0]])))
    assert found.raw.value == pytest.approx((1 + 1 / 3 + 0 + 1) / 4)
    # Against what the others say where they agree: not on p2, where they do not.
    assert [person.with_majority for person in found.annotators] == [Share(1, 1), Share(2, 2), Share(2, 3)]
    assert [pair for pair, _ in found.disputed] == ["p2", "p1"]
    assert found.majority_noise == pytest.approx(majority_flip_rate(found.noise.value, 3))


def test_one_annotator_alone():
    found = measure_agreement(votes(ann="ab="))
    assert found.shared == 0
    assert math.isnan(found.raw.value)
    assert math.isnan(found.alpha.value)
    assert found.noise is found.noise_from is None
    with pytest.raises(UserError, match="no labels"):
        measure_agreement([])


def test_habits_of_one_annotator():
    first = [
        Vote("p0", "ann", "a", left="a", seconds=2.0, longer="a"),
        Vote("p1", "ann", "b", left="a", seconds=4.0, longer="b"),
        Vote("p2", "ann", "a", left="a", seconds=9.0, longer="b"),
        Vote("p3", "ann", "tie", left="a", seconds=60.0, longer="a"),
        Vote("p4", "ann", "b"),
    ]
    again = [
        Vote("p0", "ann", "a", left="b", repeat=True),
        Vote("p1", "ann", "a", left="b", repeat=True),
        Vote("p3", "ann", "tie", left="b", repeat=True),
        Vote("gone", "ann", "a", left="b", repeat=True),  # its first answer was taken back
    ]
    found = measure_agreement(first + again)
    [ann] = found.annotators
    assert found.pairs == 5
    assert (ann.votes, ann.ties, ann.seconds) == (9, 2, 6.5)
    assert ann.self_consistency == Share(2, 3)
    assert ann.left == Share(2, 6)
    assert ann.longer == Share(2, 3)
    assert ann.with_majority == Share(0, 0)
    assert math.isnan(ann.with_majority.value)


def with_repeats(noise, pairs, names=("ann",)):
    """Each of `names` judges pairs of their own twice, each time wrong with that probability."""
    generator = np.random.default_rng(0)
    return [
        Vote(f"{name}{i}", name, "ab"[better ^ wrong], repeat=repeat)
        for name in names
        for i, better in enumerate(generator.integers(0, 2, size=pairs))
        for repeat, wrong in zip((False, True), generator.random(2) < noise, strict=True)
    ]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2, 0.3])
def test_repeats_of_one_annotator_find_the_noise_that_was_put_in(noise):
    found = measure_agreement(with_repeats(noise, 5000))
    [ann] = found.annotators
    assert ann.self_consistency.value == pytest.approx(1 - 2 * noise * (1 - noise), abs=0.02)
    assert found.noise.value == pytest.approx(noise, abs=0.03)  # more than three standard errors at 0.3
    assert found.noise.low <= found.noise.value <= found.noise.high < found.noise.low + 0.06
    assert (found.noise_from, found.majority_noise, found.shared) == ("repeats", None, 0)


def test_few_repeats_that_agree_prove_little():
    found = measure_agreement(with_repeats(0.0, 3))
    agreement = wilson(1.0, 3)
    assert (found.noise.value, found.noise.low) == (0.0, pytest.approx(0.0, abs=1e-6))
    assert found.noise.high == flip_rate(agreement.low, 1) == 0.5
    many = measure_agreement(with_repeats(0.0, 30)).noise
    assert 0.02 < many.high < 0.1


def test_repeats_count_only_where_no_two_annotators_have_decided_a_pair():
    alone = with_repeats(0.2, 200, ("ann", "bob", "cat"))
    assert measure_agreement(alone).noise_from == "repeats"
    assert measure_agreement(alone).majority_noise is None
    tied = [Vote("ann0", "bob", "tie"), Vote("ann1", "cat", "tie")]
    assert measure_agreement(alone + tied).noise == measure_agreement(alone).noise
    first = next(vote for vote in alone if vote.pair == "ann0")
    found = measure_agreement([*alone, Vote("ann0", "bob", first.answer)])
    assert (found.noise_from, found.noise.value) == ("annotators", 0.0)
    undecided = [Vote("p", "ann", "a"), Vote("p", "ann", "tie", repeat=True), Vote("q", "ann", "b", repeat=True)]
    assert measure_agreement(undecided).noise is None


def test_intervals_enclose_and_narrow():
    generator = np.random.default_rng(3)

    def noisy(pairs):
        better = generator.integers(0, 2, size=pairs)
        return votes(
            **{name: ["ab"[vote] for vote in better ^ (generator.random(pairs) < 0.15)] for name in ("ann", "bob")}
        )

    few, many = (measure_agreement(noisy(pairs)) for pairs in (60, 600))
    for found in (few, many):
        for estimate in (found.raw, found.cohen, found.fleiss, found.alpha, found.noise):
            assert isinstance(estimate, Estimate)
            assert estimate.low < estimate.value < estimate.high
    assert many.alpha.high - many.alpha.low < 0.5 * (few.alpha.high - few.alpha.low)
    assert few.noise.low < 0.15 < few.noise.high
    assert SAMPLES >= 1000

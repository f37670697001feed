"""Which of two policies people prefer."""

import pytest

from lorarlhf.intervals import wilson
from lorarlhf.preferences.agreement import Vote
from lorarlhf.preferences.duels import count_duels


def votes(answers, policies, annotator="ann", start=0, **more):
    return [Vote(f"p{i}", annotator, answer, policies=policies, **more) for i, answer in enumerate(answers, start)]


def test_ties_are_half_a_win_and_order_does_not_matter():
    given = votes(["a", "b", "b", "tie"], ("old", "new")) + votes(["a", "a"], ("new", "old"), start=4)
    [duel] = count_duels(given)
    assert (duel.policies, duel.pairs, duel.ties) == (("new", "old"), 6, 1)
    assert duel.won == wilson(4.5 / 6, 6)
    assert count_duels(votes(["a"], None)) == []


def test_a_pair_counts_once_however_many_judge_it():
    ann = votes(["a", "a", "b"], ("base", "tuned"))
    bob = votes(["a", "b", "b"], ("base", "tuned"), "bob")
    again = votes(["b", "b", "b"], ("base", "tuned"), "ann", repeat=True)
    [duel] = count_duels(ann + bob + again)
    assert (duel.pairs, duel.ties, duel.won.value) == (3, 1, pytest.approx(0.5))


def test_each_two_policies_apart():
    given = votes(["a"], ("x", "y")) + votes(["a"], ("y", "z"), start=1) + votes(["b"], ("z", "x"), start=2)
    assert [(duel.policies, duel.won.value) for duel in count_duels(given)] == [
        (("x", "y"), 1.0),
        (("x", "z"), 1.0),
        (("y", "z"), 1.0),
    ]

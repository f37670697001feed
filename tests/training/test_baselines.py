"""What a reward model has to beat."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from lorarlhf.training.baselines import bag_of_words
from lorarlhf.training.doubt import doubt_of

GOOD, BAD, OTHERS = 5, 6, range(10, 30)


def pairs(count, seed, good=GOOD, bad=BAD, tie=False):
    """Random tokens, of which the chosen side has one `good` and the rejected one a `bad` in half of the pairs."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        sides = [rng.choice(OTHERS, size=rng.integers(3, 9)).tolist() for _ in range(2)]
        sides[0].insert(int(rng.integers(len(sides[0]))), good)
        sides[1].insert(int(rng.integers(len(sides[1]))), bad)
        rows.append({"chosen_ids": [1, 2, *sides[0]], "rejected_ids": [1, 2, *sides[1]], "tie": tie})
    return rows


def dataset(rows):
    return Dataset.from_list(rows)


def test_words_that_decide_are_learnt():
    margins = bag_of_words(dataset(pairs(200, 0)), dataset(pairs(100, 1)))
    assert (margins > 0).float().mean() > 0.95


def test_it_has_no_side():
    """What swaps the sides of a pair swaps the sign of its margin, and no more."""
    train, test = pairs(50, 0), pairs(20, 1)
    swapped = [{"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in test]
    ours, theirs = bag_of_words(dataset(train), dataset(test)), bag_of_words(dataset(train), dataset(swapped))
    torch.testing.assert_close(ours, -theirs)


def test_order_and_prompt_say_nothing():
    train = dataset(pairs(50, 0))
    test = [{"chosen_ids": [1, 7, 8, 9], "rejected_ids": [1, 9, 8, 7]}]
    assert bag_of_words(train, dataset(test)).item() == pytest.approx(0)


def test_ties_teach_nothing():
    """They carry the opposite words, and would turn the answer round."""
    lies = pairs(400, 2, good=BAD, bad=GOOD, tie=True)
    margins = bag_of_words(dataset(pairs(100, 0) + lies), dataset(pairs(100, 1)))
    assert (margins > 0).float().mean() > 0.95
    assert not bag_of_words(dataset(lies), dataset(pairs(3, 1))).any()


@pytest.mark.parametrize(
    ("interval", "words", "longer", "said"),
    [
        ([0.70, 0.76], 0.66, 0.62, None),
        ([0.70, 0.76], 0.71, 0.62, "is not shown to beat a bag of words"),
        ([0.70, 0.76], 0.62, 0.72, "is not shown to beat preferring the longer"),
        ([0.70, 0.76], 0.74, 0.62, "does not beat a bag of words"),
    ],
)
def test_a_reward_model_that_learnt_nothing_is_called_that(interval, words, longer, said):
    summary = {
        "eval_accuracy": 0.73,
        "eval_accuracy_interval": interval,
        "bag_of_words_accuracy": words,
        "longer_wins_accuracy": longer,
    }
    line = doubt_of(summary)
    if said is None:
        assert line is None
    else:
        assert line.startswith(f"the reward model {said} on held-out comparisons: 73.0% (95%: 70.0% to 76.0%) against ")


def test_nothing_is_said_where_nothing_was_measured():
    assert doubt_of({"eval_loss": 0.3}) is None
    assert doubt_of({}) is None

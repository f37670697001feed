"""Accuracy by group, RewardBench's means, and where length gives no hint."""

import pytest
import torch

from lorarlhf.training.breakdown import CATEGORIES, WEIGHTS, accuracy_by_group, length_controlled, reward_bench


def test_each_group_has_its_own_accuracy():
    margins = torch.tensor([1.0, -1.0, 2.0, 0.0, 3.0])
    groups = {"source": ["a", "a", "b", "b", ""], "category": ["x"] * 5}
    found = accuracy_by_group(margins, groups)
    assert {name: (part["pairs"], part["accuracy"]) for name, part in found["source"].items()} == {
        "a": (2, 0.5),
        "b": (2, 0.75),
    }
    low, high = found["source"]["a"]["interval"]
    assert low < 0.5 < high
    assert "category" not in found  # one group of all rows


def part(accuracy, pairs=10):
    return {"accuracy": accuracy, "pairs": pairs}


def test_reward_bench_is_the_mean_of_four_categories():
    by_subset = {name: part(0.5) for subsets in CATEGORIES.values() for name in subsets}
    by_subset["alpacaeval-easy"] = part(1.0, pairs=40)
    by_subset["math-prm"] = part(1.0, pairs=447)
    means = reward_bench(by_subset)
    assert means["Chat"] == pytest.approx((40 * 1.0 + 4 * 10 * 0.5) / 80)
    assert means["Reasoning"] == pytest.approx(0.75)  # mathematics counts as much as six subsets of code
    assert means["mean"] == pytest.approx((means["Chat"] + 0.5 + 0.5 + 0.75) / 4)
    assert sum(WEIGHTS[name] for name in CATEGORIES["Reasoning"] if name != "math-prm") == WEIGHTS["math-prm"]


def test_other_subsets_are_no_reward_bench():
    assert reward_bench({"a": part(1.0), "math-prm": part(1.0)}) == {}
    assert reward_bench({}) == {}


def test_pairs_of_nearly_the_same_length():
    chosen = [[1, 2, *range(10, 30)], [1, 2, 10, 11], [1, 2, *range(10, 30)]]
    rejected = [[1, 2, *range(40, 61)], [1, 2, *range(40, 50)], [1, 2, *range(40, 60)]]
    found = length_controlled(torch.tensor([1.0, -1.0, -1.0]), chosen, rejected)
    assert (found["pairs"], found["accuracy"]) == (2, 0.5)


def test_the_prompt_does_not_make_lengths_alike():
    prompt = list(range(100, 300))
    found = length_controlled(torch.tensor([1.0]), [[*prompt, 1, 2]], [[*prompt, 3, 4, 5, 6]])
    assert found == {"pairs": 0, "accuracy": None, "interval": None}

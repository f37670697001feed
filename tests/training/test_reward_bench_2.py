"""RewardBench 2's scores, by hand and against a slow second implementation of its rules."""

import math
import random
from statistics import fmean

import pytest

from lorarlhf.data.choices import ChoiceExample
from lorarlhf.intervals import wilson
from lorarlhf.training.reward_bench_2 import TIES_WEIGHTS, Answers, reward_bench_2, reward_bench_2_lines, scored


def four(subset, right, *wrong):
    return Answers([right], list(wrong), subset, "7")


def tie(name, right, wrong):
    return Answers(right, wrong, "Ties", name)


def test_the_right_one_of_four_has_to_score_highest():
    answers = [
        four("Math", 2.0, 1.0, 0.0, -1.0),
        four("Math", 1.0, 2.0, 0.0, -1.0),
        four("Math", 2.0, 2.0, 2.0, -1.0),  # one of three that are highest
        four("Math", 1.0, 1.0, 1.0, 1.0),
    ]
    found = reward_bench_2(answers)
    score = (1 + 0 + 1 / 3 + 1 / 4) / 4
    interval = wilson(score, 4)
    assert found["subsets"]["Math"]["score"] == pytest.approx(score)
    assert found["subsets"]["Math"]["interval"] == pytest.approx([interval.low, interval.high])
    assert found["subsets"]["Math"]["prompts"] == 4
    assert found["mean"]["score"] == pytest.approx(score)


def test_subsets_count_alike_however_large():
    answers = [four("Focus", 1.0, 0.0)] * 9 + [four("Safety", 0.0, 1.0)]
    found = reward_bench_2(answers)
    assert found["mean"]["score"] == pytest.approx(0.5)
    low, high = found["mean"]["interval"]
    assert low <= 0.5 <= high


def test_ties_worked_by_hand():
    answers = [
        tie("ref:0", [3.0], [1.0, 0.0]),  # right, by 2
        tie("tied:0", [3.0, 2.5], [1.0, 0.0]),  # right, by 1.5; spread 0.5
        tie("ref:1", [1.0], [0.5]),  # right, by 0.5
        tie("tied:1", [4.0, 2.0], [-1.0]),  # right, by 3; spread 2: nearer, but not to the one by 0.5
        tie("ref:2", [0.0], [0.0]),  # level is not right
        tie("tied:2", [1.0, 0.0], [2.0]),
    ]
    found = reward_bench_2(answers)["subsets"]["Ties"]
    assert {key: found[key] for key in ("prompts", "one_right", "many_right", "nearer", "nearer_to_both")} == {
        "prompts": 3,
        "one_right": pytest.approx(2 / 3),
        "many_right": pytest.approx(2 / 3),
        "nearer": pytest.approx(2 / 3),
        "nearer_to_both": pytest.approx(1 / 3),
    }
    distance = fmean([math.tanh(1.5 / 0.5 - 1), math.tanh(0.5 / 2 - 1), math.tanh(-2 / 1 - 1)])
    assert found["distance"] == pytest.approx(distance)
    assert found["score"] == pytest.approx(0.3 * 2 / 3 * 2 + 0.2 * 2 / 3 + 0.2 / 3 + 0.01 * distance)
    assert found["interval"][0] <= found["score"] <= found["interval"][1]


def test_right_ones_all_alike():
    """The ratio is infinite, or undefined: tanh of it is 1, or counts 0."""
    far = reward_bench_2([tie("ref:0", [1.0], [0.0]), tie("tied:0", [1.0, 1.0], [0.0])])["subsets"]["Ties"]
    level = reward_bench_2([tie("ref:0", [1.0], [0.0]), tie("tied:0", [1.0, 1.0], [1.0])])["subsets"]["Ties"]
    assert (far["distance"], level["distance"]) == (1.0, 0.0)
    assert far["score"] == pytest.approx(1.01), "as its authors have it"


def test_ties_without_a_counterpart():
    """Accuracy of each kind counts prompts that the other lacks; what compares the two does not."""
    alone = reward_bench_2([tie("tied:0", [1.0, 1.0], [0.0])])
    assert alone["subsets"]["Ties"]["score"] is None
    assert alone["subsets"]["Ties"]["many_right"] == 1.0
    assert alone["subsets"]["Ties"]["one_right"] is None
    assert alone["mean"]["score"] is None
    more = reward_bench_2(
        [tie("ref:0", [1.0], [0.0]), tie("tied:0", [1.0, 0.9], [0.0]), tie("ref:1", [0.0], [1.0])],
    )["subsets"]["Ties"]
    assert (more["one_right"], more["nearer"]) == (0.5, 1.0)


def slow_reference(answers):
    """Its authors' rules, prompt by prompt, in plain Python."""
    scores = {}
    for subset in {answer.subset for answer in answers}:
        rows = [answer for answer in answers if answer.subset == subset]
        if subset != "Ties":
            credit = []
            for row in rows:
                everything = [*row.right, *row.wrong]
                is_highest = row.right[0] == max(everything)
                credit.append(1 / everything.count(max(everything)) if is_highest else 0)
            scores[subset] = sum(credit) / len(credit)
            continue
        stats = {"ref": {}, "tied": {}}
        for row in rows:
            kind, number = row.name.split(":")
            gap = min(row.right) - max(row.wrong)
            stats[kind][int(number)] = (gap > 0, max(row.right) - min(row.right), gap)
        both = [number for number in stats["tied"] if number in stats["ref"]]
        nearer = [stats["tied"][n][2] > stats["tied"][n][1] for n in both]
        nearer_to_both = [min(stats["ref"][n][2], stats["tied"][n][2]) > stats["tied"][n][1] for n in both]
        further = []
        for n in both:
            top, below = min(stats["ref"][n][2], stats["tied"][n][2]), stats["tied"][n][1]
            further.append(math.tanh(top / below - 1) if below else (top > 0) - (top < 0))
        scores[subset] = (
            0.3 * fmean(s[0] for s in stats["tied"].values())
            + 0.3 * fmean(s[0] for s in stats["ref"].values())
            + 0.2 * fmean(nearer)
            + 0.2 * fmean(nearer_to_both)
            + 0.01 * fmean(further)
        )
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_reference(seed):
    draw = random.Random(seed)

    def score():  # few values, so that some are equal
        return draw.randint(-3, 3) / 2

    subsets = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    answers = [four(draw.choice(subsets), score(), score(), score(), score()) for _ in range(200)]
    for number in range(30):
        answers.append(tie(f"ref:{number}", [score() + 1], [score() for _ in range(3)]))
        if number % 7:
            many = [score() + 1.5 for _ in range(draw.randint(2, 9))]
            answers.append(tie(f"tied:{number}", many, [score() for _ in range(3)]))
    draw.shuffle(answers)
    found, expected = reward_bench_2(answers), slow_reference(answers)
    assert {name: part["score"] for name, part in found["subsets"].items()} == pytest.approx(expected)
    assert found["mean"]["score"] == pytest.approx(fmean(expected.values()))
    low, high = found["mean"]["interval"]
    assert low < found["mean"]["score"] < high < low + 0.2


def test_weights_are_those_of_the_program():
    assert list(TIES_WEIGHTS.values()) == [0.3, 0.3, 0.2, 0.2, 0.01]


def test_scores_come_one_behind_the_other():
    examples = [
        ChoiceExample([[1]], [[2], [3]], "Math", "0"),
        ChoiceExample([[4], [5]], [[6]], "Ties", "tied:0"),
    ]
    assert scored(examples, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == [
        Answers([1.0], [2.0, 3.0], "Math", "0"),
        Answers([4.0, 5.0], [6.0], "Ties", "tied:0"),
    ]


def test_lines():
    found = reward_bench_2([four("Math", 1.0, 0.0), tie("tied:0", [1.0, 1.0], [0.0])])
    evaluation = {
        "examples": 2,
        "data": "bench",
        "dropped_too_long": 3,
        "reward_bench_2": found,
        "longer_wins": {"score": 0.25, "interval": [0.2, 0.3]},
    }
    lines = reward_bench_2_lines(evaluation)
    assert lines[0] == ("", "reward on 2 prompts of bench; 3 too long")
    assert ("Math", "100.0%  (95%: 20.7% to 100.0%) on 1 prompts") in lines
    assert ("Ties", "undefined on 1 prompts") in lines
    assert ("  Ties", "100.0% right above wrong, many") in lines
    assert lines[-1] == ("longer wins", "25.0%  (95%: 20.0% to 30.0%)")

"""Reward functions: where they come from, what they are given, and what they may return."""

import sys
import threading

import pytest
import torch
from demo_runs import letter_e, short_is_good

from lorarlhf.data.rows import ColumnsWanted
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import WeightedFunction
from lorarlhf.rl.rewards import columns_wanted, function_scores, load_reward_functions


def test_functions_are_imported_with_their_weights():
    specs = ["demo_runs:short_is_good", WeightedFunction(function="demo_runs:letter_e", weight=-0.5)]
    assert load_reward_functions(specs) == [(short_is_good, 1.0), (letter_e, -0.5)]


def test_a_function_may_live_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_two.py").write_text("def two(prompts, responses):\n    return [2] * len(responses)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as the console script starts
    ((function, _),) = load_reward_functions(["rewards_of_two:two"])
    assert function_scores([(function, 1.0)], ["a"], ["b"]).tolist() == [2.0]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [("no_such_module:f", "No module named 'no_such_module'"), ("demo_runs:no_such_function", "no_such_function")],
)
def test_a_function_that_cannot_be_imported(spec, reason):
    with pytest.raises(UserError) as error:
        load_reward_functions([spec])
    message = str(error.value)
    assert message.startswith(f"ppo.reward_functions: cannot import '{spec}': ")
    assert reason in message
    assert "\n" not in message


def test_scores_are_added_with_weights():
    functions = [(short_is_good, 2.0), (letter_e, -1.0)]
    scores = function_scores(functions, ["?", "?"], ["eel", "a long answer"])
    assert scores.tolist() == pytest.approx([2 * -0.3 - 2 / 4, 2 * -1.3 - 1 / 4])


def test_functions_get_prompts_and_responses():
    seen = []

    def spy(prompts, responses):
        seen.append((prompts, responses))
        return torch.tensor([1, 2])

    function_scores([(spy, 1.0)], ["p", "q"], ["r", "s"])
    assert seen == [(["p", "q"], ["r", "s"])]


# Columns of the prompt data


def exact(prompts, responses, answer):
    return [float(a == r) for a, r in zip(answer, responses, strict=True)]


def weighted(prompts, responses, *, answer, hint=None, scale=3.0):
    return [scale * (h is None) for h in hint or [1] * len(answer)]


def of_all(prompts, responses, **columns):
    return [float(len(columns))] * len(prompts)


class Judge:
    def __call__(self, questions, replies, level):
        return level


@pytest.mark.parametrize(
    ("functions", "wanted"),
    [
        ([short_is_good], ColumnsWanted()),
        ([exact], ColumnsWanted(frozenset({"answer"}))),
        ([weighted], ColumnsWanted(frozenset({"answer"}), frozenset({"hint", "scale"}))),
        ([exact, Judge()], ColumnsWanted(frozenset({"answer", "level"}))),
        ([exact, of_all], ColumnsWanted(frozenset({"answer"}), all=True)),
        ([max, len], ColumnsWanted()),  # one does not say what it takes, the other takes one thing
    ],
)
def test_the_columns_that_functions_want(functions, wanted):
    assert columns_wanted([(function, 1.0) for function in functions]) == wanted


COLUMNS = {"answer": ["4", "5"], "hint": ["even", None], "responses": ["x", "y"]}


@pytest.mark.parametrize(
    ("function", "columns", "expected"),
    [
        (exact, COLUMNS, [1.0, 0.0]),
        (weighted, COLUMNS, [0.0, 3.0]),
        (weighted, {"answer": ["4", "5"]}, [0.0, 0.0]),
        (weighted, COLUMNS | {"scale": 2.0}, [0.0, 2.0]),
        (of_all, COLUMNS, [2.0, 2.0]),  # `responses` is taken
        (of_all, {}, [0.0, 0.0]),
        (Judge(), {"level": [7, 8]}, [7.0, 8.0]),
    ],
)
def test_functions_get_the_columns_that_they_name(function, columns, expected):
    assert function_scores([(function, 1.0)], ["2+2", "2+3"], ["4", "6"], columns).tolist() == expected


def test_a_column_that_is_not_there():
    with pytest.raises(UserError) as error:
        function_scores([(exact, 1.0)], ["p"], ["r"], {"id": [1], "solution": ["4"]})
    assert str(error.value) == (
        "test_rewards:exact: no column answer, which ppo.reward_functions ask for; there are id, solution"
    )


@pytest.mark.parametrize(
    "returned",
    [
        [1.0],
        [1.0, 2.0, 3.0],
        [[1.0], [2.0]],
        3.0,
        None,
        ["good", "bad"],
        [1.0, None],
        [1.0, float("nan")],
        [float("inf"), 1.0],
    ],
)
def test_a_function_must_return_one_finite_number_a_response(returned):
    def faulty(prompts, responses):
        return returned

    with pytest.raises(UserError, match=r"test_rewards:.*faulty must return 2 finite numbers"):
        function_scores([(faulty, 1.0)], ["p", "q"], ["r", "s"])


def test_the_response_without_a_finite_number_is_named():
    def faulty(prompts, responses):
        return [1.0, float("nan")]

    with pytest.raises(UserError, match=r"of row 1, prompt 'q', response 's', it is nan"):
        function_scores([(faulty, 1.0)], ["p", "q"], ["r", "s"])


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("error", [ZeroDivisionError("by nothing"), SystemExit("by nothing")])
def test_an_error_in_a_function_is_told_with_its_name_and_not_hidden(timeout, error):
    def broken(prompts, responses):
        raise error

    said = rf"test_rewards:.*broken raised {type(error).__name__}: by nothing, for row 0, prompt 'p', response 'r' \("
    with pytest.raises(UserError, match=said) as told:
        function_scores([(broken, 1.0)], ["p"], ["r"], timeout=timeout)
    assert told.value.__cause__ is error


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("bad", range(7))
def test_the_row_that_a_function_raises_for_is_named(timeout, bad):
    calls = []

    def broken(prompts, responses, answer):
        calls.append(len(responses))
        return [1 / (a - b) for a, b in zip(map(int, responses), answer, strict=True)]

    answers = [-1] * 7
    answers[bad] = bad
    with pytest.raises(UserError, match=rf"by zero, for row {bad}, prompt '{bad}\?', response '{bad}' \(--verbose"):
        function_scores(
            [(broken, 1.0)], [f"{n}?" for n in range(7)], list(map(str, range(7))), {"answer": answers}, timeout
        )
    assert sum(calls) <= 3 * 7


def test_a_function_that_raises_for_no_row_alone():
    def broken(prompts, responses):
        return [1 / (2 - len(responses))] * len(responses)

    with pytest.raises(UserError, match="by zero, for no row alone"):
        function_scores([(broken, 1.0)], ["p", "q"], ["r", "s"])


def test_the_row_is_not_looked_for_longer_than_a_batch_may_take():
    done = threading.Event()

    def broken(prompts, responses):
        if len(responses) == 1:
            done.wait(30)
        raise ZeroDivisionError("by nothing")

    with pytest.raises(UserError, match=r"by nothing, for a batch which begins with row 0, prompt 'p', response 'r'"):
        function_scores([(broken, 1.0)], ["p", "q", "x"], ["r", "s", "y"], timeout=0.2)
    done.set()


def test_a_function_that_takes_too_long_is_left_behind():
    done = threading.Event()

    def slow(prompts, responses):
        done.wait(30)
        return [1.0]

    with pytest.raises(UserError, match=r"slow took longer than 0\.05 seconds for a batch of 1, .* row 0, prompt 'p'"):
        function_scores([(slow, 1.0)], ["p"], ["r"], timeout=0.05)
    done.set()
    assert function_scores([(slow, 1.0)], ["p"], ["r"], timeout=30).tolist() == [1.0]


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_function_keeps_gradients_only_where_its_caller_does(timeout, gradients):
    with torch.set_grad_enabled(gradients):
        scores = function_scores([(lambda *_: [float(torch.is_grad_enabled())], 1.0)], ["p"], ["r"], timeout=timeout)
    assert scores.tolist() == [float(gradients)]

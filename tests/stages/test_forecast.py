"""How long a recipe still takes: by hand on made-up iterations, and nothing where nothing was measured."""

import json
import time

import pytest
from demo_runs import small_recipe

from lorarlhf.run import Run, write_json
from lorarlhf.stages.forecast import Pace, measured, time_left


def row(iteration, rollout=4.0, score=2.0, update=3.0):
    return {"iteration": iteration, "seconds_rollout": rollout, "seconds_score": score, "seconds_update": update}


def test_the_pace_is_that_of_the_latest_iterations_and_not_of_the_first():
    assert measured([], 8) is None
    assert measured([{"iteration": 0, "eval_reward": 1.0}, {"iteration": 1, "skipped": 1}], 8) is None
    assert measured([row(1, 40.0)], 8) == Pace(1, 45.0, 42 / 8)
    slow = [row(n, 100.0) for n in range(1, 6)]
    assert measured([*slow, *(row(n) for n in range(6, 16)), {"iteration": 15, "eval_kl": 1}], 8) == Pace(15, 9.0, 0.75)


@pytest.fixture
def recipe(tmp_path):
    """10 iterations of 8 responses, of which two evaluations of 4 prompts are to come after iteration 4."""
    return small_recipe(tmp_path, "ppo.iterations=10", "ppo.eval_every=8", "data.eval_examples=6")


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.stage("ppo").mkdir(parents=True)
    (run.stage("ppo") / "metrics.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(1, 5)))
    return run


def test_training_and_evaluation_are_told_from_it(recipe, run):
    pace = Pace(4, 9.0, 0.75)
    assert pace.training(recipe.ppo) == 6 * 9 + 2 * 4 * 0.75 == 60
    assert pace.evaluation(6) == 9
    assert (
        time_left(recipe, run, ["ppo", "evaluate", "report", "export"], 0.0) == "about 1:09 left, then report, export"
    )
    assert time_left(recipe, run, ["ppo"], 0.0) == "about 1:00 left"


def test_prompts_that_nobody_has_counted_yet_are_not_foretold(recipe, run):
    data = recipe.data.model_copy(update={"eval_examples": None})
    uncounted = recipe.model_copy(update={"data": data})
    assert time_left(uncounted, run, ["ppo", "evaluate"], 0.0) == "about 1:00 left, then evaluate"
    write_json(run.stage("ppo") / "summary.json", {"eval_rows": 8})
    assert time_left(uncounted, run, ["evaluate"], time.time()) == "about 0:11 left"
    assert time_left(recipe, run, ["evaluate"], time.time() - 4) == "about 0:04 left"  # 6 of the 8


@pytest.mark.parametrize("steps", [["reward", "ppo"], ["sft", "ppo"], ["report", "export"]])
def test_nothing_is_said_that_cannot_be_known(recipe, run, steps):
    assert time_left(recipe, run, steps, 0.0) == ""


def test_nothing_follows_from_what_an_earlier_start_has_left(recipe, run, tmp_path):
    assert time_left(recipe, run, ["ppo"], time.time() + 5) == ""
    assert time_left(recipe, Run(tmp_path / "new"), ["ppo"], 0.0) == ""
    assert time_left(recipe, run, ["evaluate"], time.time() - 100) == ""  # it takes longer than was thought

"""Folders of runs as the stages leave them, written by hand: no model is needed to tell of one."""

from __future__ import annotations

import json

import pytest
from demo_runs import write_jsonl

from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run, write_json

REWARD_SUMMARY = {
    "objective": "bradley_terry",
    "eval_accuracy": 0.8,
    "eval_accuracy_interval": [0.7, 0.9],
    "longer_wins_accuracy": 0.5,
    "bag_of_words_accuracy": 0.75,
    "reliability": [
        {"pairs": 10, "confidence": 0.6, "accuracy": 0.7, "accuracy_low": 0.4, "accuracy_high": 0.9},
        {"pairs": 20, "confidence": 0.9, "accuracy": 0.85, "accuracy_low": 0.6, "accuracy_high": 0.95},
    ],
    "margins": {"edges": [-1.0, 0.0, 1.0], "pairs": [6, 24]},
    "steps": 20,
    "train_examples": 100,
    "seconds": 12.0,
    "peak_memory_gb": 0.5,
}
PROMPTS = ("Where is my parcel?", [{"role": "user", "content": "Have you got pears?"}], "Thanks!")
BEFORE = ("Go away.", "What do you want now? No pears.", "Whatever.")
AFTER = ("I will look at once.", "What a good question! No pears, but apples and plums.", "Whatever.")


def iteration(number):
    return {
        "iteration": number,
        "step": 4 * number,
        "reward": 0.1 * number,
        "kl": 0.2 * number,
        "entropy": 0.4,
        "seconds_rollout": 1.0,
        "seconds_update": 2.0,
        "peak_memory_gb": 0.6,
    }


def evaluation(number):
    return {"iteration": number, "step": 4 * number, "eval_reward": 0.1 * number - 0.05, "eval_kl": 0.2 * number}


@pytest.fixture
def make_run(tmp_path):
    """`make_run(name, sets)`: a run whose reward model and policy are done."""

    def make(name="mine", sets=(), iterations=3):
        run = Run(tmp_path / name)
        recipe = load_recipe("demo", sets=["ppo.iterations=3", *sets])
        for stage in ("reward", "ppo"):
            run.write_recipe(recipe, stage)
        write_jsonl(
            run.path / "reward" / "metrics.jsonl",
            [{"step": step, "loss": 1 / step, "accuracy": 0.7, "margin": step / 10} for step in (10, 20)],
        )
        run.write_summary("reward", REWARD_SUMMARY)
        rows = [evaluation(0), *map(iteration, range(1, iterations + 1)), evaluation(iterations)]
        rows[-2]["warnings"] = {"cut_off": "all responses are cut off"}
        write_jsonl(run.path / "ppo" / "metrics.jsonl", rows)
        write_jsonl(
            run.path / "ppo" / "samples.jsonl",
            [
                {"iteration": at, "prompt": prompt, "response": response, "reward": reward}
                for at, responses, rewards in ((0, BEFORE, (0, 1, 2)), (iterations, AFTER, (5, 4, 2)))
                for prompt, response, reward in zip(PROMPTS, responses, rewards, strict=True)
            ],
        )
        run.write_summary(
            "ppo",
            {
                "iterations": iterations,
                "stopped": None,
                "before": evaluation(0),
                "best": evaluation(iterations),
                "improved": True,
                "train_prompts": 50,
                "seconds": 9.0,
                "peak_memory_gb": 0.6,
            },
        )
        return run

    return make


@pytest.fixture
def frontier():
    """`frontier(run)`: what `evaluate --frontier` leaves there."""

    def write(run):
        point = {"reward": 1.0, "reward_interval": [0.5, 1.5], "judge_reward": 2.0, "judge_reward_interval": [1.0, 3.0]}
        found = {
            "prompts": 30,
            "data": "held-out.jsonl",
            "judge": "another model",
            "checkpoints": [{"iteration": k, "kl": 0.5 * k, **point} for k in (0, 2, 4)],
            "best_of": [{"n": 2, "kl_bound": 0.19, **point}],
            "over_optimisation": {
                "outcome": "over_optimised",
                "from": 4,
                "compared": [2, 4],
                "reward_change": 0.5,
                "reward_change_interval": [0.25, 0.75],
                "judge_change": -1.0,
                "judge_change_interval": [-1.5, -0.5],
            },
        }
        write_json(run.path / "ppo" / "frontier.json", json.loads(json.dumps(found)))

    return write

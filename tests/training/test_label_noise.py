"""From labels flipped at a known rate to the smoothing that `data agreement` suggests, and what that does."""

import json
import random

import pytest
from demo_runs import DEMO, write_jsonl

from lorarlhf.backbone.load import load_backbone
from lorarlhf.demo.world import gold_score
from lorarlhf.preferences.agreement import Vote, measure_agreement, suggested_smoothing
from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run
from lorarlhf.stages.reward import train_reward

PAIRS, AGREED_ON = 1000, 4000  # to train on; labelled by two people


def swapped(row):
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def truly(row):
    """The pair as the gold rule has it, without the 10% that the demo's file has wrong."""
    prompt, chosen, rejected = (row[column][0]["content"] for column in ("prompt", "chosen", "rejected"))
    return row if gold_score(prompt, chosen) > gold_score(prompt, rejected) else swapped(row)


def demo_rows(name):
    return [truly(json.loads(line)) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.2, 0.3])
def test_the_suggested_smoothing_against_none(tmp_path, noise):
    rng = random.Random(0)
    rows = demo_rows("preferences.jsonl")[:AGREED_ON]
    flips = {name: [rng.random() < noise for _ in rows] for name in ("ann", "bob")}
    votes = (Vote(str(i), name, "b" if flip else "a") for name, given in flips.items() for i, flip in enumerate(given))
    smoothing = suggested_smoothing(measure_agreement(votes).noise.value)
    assert smoothing == pytest.approx(noise, abs=0.03)

    labelled = [swapped(row) if flip else row for row, flip in zip(rows, flips["ann"], strict=True)][:PAIRS]
    sets = [
        f"data.preferences={write_jsonl(tmp_path / 'train.jsonl', labelled)}",
        f"data.preferences_test={write_jsonl(tmp_path / 'test.jsonl', demo_rows('preferences_test.jsonl'))}",
        "reward.num_train_epochs=3.0",
    ]
    results = []
    for chosen in (0.0, smoothing):
        recipe = load_recipe("demo", sets=[*sets, f"reward.label_smoothing={chosen}"])
        run = Run(tmp_path / f"run-{chosen}")
        results.append(train_reward(recipe, run, backbone=load_backbone(recipe.model)))
    plain, smoothed = results
    print(f"noise {noise}: accuracy {plain['eval_accuracy']:.3f}, smoothed {smoothed['eval_accuracy']:.3f}")
    # Measured on three draws: smoothing changes accuracy by +0.2, 0.0 and -3.5 points at 10%, 20% and 30% noise, and
    # holds the scores closer together. It is no cure for bad labels.
    assert plain["eval_accuracy"] > 0.8
    assert abs(smoothed["eval_accuracy"] - plain["eval_accuracy"]) < 0.03 + noise / 4
    assert smoothed["eval_margin"] < plain["eval_margin"]

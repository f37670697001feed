"""Trackers, offline: what they are told in every stage, and where their files lie."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from demo_runs import small_recipe

from lorarlhf.run import Run
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward
from lorarlhf.stages.sft import train_sft

STAGES = (("sft", train_sft), ("reward", train_reward), ("ppo", train_ppo))
SHORT = ("sft.max_steps=2", "reward.max_steps=2", "sft.logging_steps=1", "reward.logging_steps=1", "ppo.iterations=1")
TOLD = {
    "sft": {"loss", "eval_loss"},
    "reward": {"loss", "eval_accuracy"},
    "ppo": {"reward", "kl", "eval_reward", "eval_kl"},
}


def recipe_with(tmp_path: Path, tracker: str):
    report = [f"{stage}.report_to=[{tracker}]" for stage, _ in STAGES]
    return small_recipe(tmp_path, *SHORT, *report)


def test_tensorboard_in_every_stage(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, run = recipe_with(tmp_path, "tensorboard"), Run(tmp_path / "runs" / "mine")
    for stage, train in STAGES:
        train(recipe, run)
        events = EventAccumulator(str(run.stage(stage) / "tensorboard")).Reload()
        tags = events.Tags()
        assert TOLD[stage] <= set(tags["scalars"])
        logged = [json.loads(line) for line in (run.stage(stage) / "metrics.jsonl").read_text().splitlines()]
        name = "reward" if stage == "ppo" else "loss"
        told = [event.value for event in events.Scalars(name)]
        assert told == pytest.approx([row[name] for row in logged if name in row], rel=1e-5)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]
    (before, after) = events.Tensors("samples/text_summary")
    text = after.tensor_proto.string_val[0].decode()
    assert text.startswith("| iteration | prompt | response | reward |\n| --- | --- | --- | --- |\n| 1 | ")
    assert before.step < after.step


PROGRAM = """
import logging, sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests_of_trackers import STAGES, recipe_with
from lorarlhf.run import Run
folder = Path({folder!r})
logging.basicConfig(format="%(message)s")
logging.getLogger("lorarlhf").setLevel(logging.INFO)
recipe = recipe_with(folder, "trackio")
for _, train in STAGES:
    train(recipe, Run(folder / "runs" / "mine"))
"""


@pytest.mark.slow
def test_trackio_in_every_stage(tmp_path):
    """In a process of its own: trackio takes its folder from the environment as it is imported."""
    pytest.importorskip("trackio")
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    program = PROGRAM.replace("tests_of_trackers", Path(__file__).stem).format(path=path, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=600)
    assert f"to look at it: TRACKIO_DIR={tmp_path}/runs/mine/trackio trackio show\n" in done.stderr
    (database,) = (tmp_path / "runs" / "mine" / "trackio").glob("*.db")
    assert database.stem == "lorarlhf"
    rows = sqlite3.connect(database).execute("SELECT run_name, metrics FROM metrics").fetchall()
    for stage, _ in STAGES:
        told = [json.loads(metrics) for name, metrics in rows if name == f"mine-{stage}"]
        assert TOLD[stage] <= {key for row in told for key in row}
    tables = [row["samples"] for row in told if "samples" in row]
    assert tables[-1]["_value"][0].keys() == {"iteration", "prompt", "response", "reward"}

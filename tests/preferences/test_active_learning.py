"""Labels train a reward model in the background, and what it is least sure of is asked next."""

import re
import signal
import sys
import time
from pathlib import Path

import pytest
from demo_runs import small_recipe
from labelling_page import label
from typer.testing import CliRunner

from lorarlhf.cli.collect import collect_app
from lorarlhf.errors import UserError
from lorarlhf.preferences import active_learning
from lorarlhf.preferences.active_learning import ActiveLearning, training_recipe
from lorarlhf.preferences.pairs import Pair
from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run

# In place of `lorarlhf`: scores each response by how far its first number is from a target, which training moves to 20.
STAND_IN = """
import json, pathlib, sys
command, *rest = sys.argv[1:]
options = dict(zip(rest, rest[1:]))
if command == "reward":
    folder = pathlib.Path(options["--output-dir"])
    (folder / "reward").mkdir()
    (folder / "recipe.used").write_text(pathlib.Path(options["--recipe"]).read_text())
    BEHAVIOUR
else:
    target = 20 if (pathlib.Path(options["--run"]) / "recipe.used").exists() else 10
    rows = [json.loads(line) for line in open(rest[0])]
    with open(options["--out"], "x") as file:
        for row in rows:
            file.write(json.dumps({"chosen_score": abs(int(row["chosen"]) - target), "rejected_score": 0}) + "\\n")
"""


@pytest.fixture
def start(start_labelling, tmp_path, monkeypatch):
    """`start(pairs, behaviour of reward)`: it, what it says, and its labelling; looks soon and often."""
    monkeypatch.setattr(active_learning, "LOOK_AFTER", 0.01)
    monkeypatch.setattr(active_learning, "EVERY", 3)
    run = Run(tmp_path / "run")
    run.write_recipe(load_recipe("demo"))

    def started(count, behaviour="pass", scored=True):
        if scored:
            run.stage("reward").mkdir()
            (run.stage("reward") / "adapter_config.json").touch()
        script = tmp_path / "stand_in.py"
        script.write_text(STAND_IN.replace("BEHAVIOUR", behaviour))
        monkeypatch.setattr(active_learning, "COMMAND", (sys.executable, str(script)))
        labelling = start_labelling([Pair(f"p{i}", "Q?", str(i), "no") for i in range(count)])
        lines = []
        return ActiveLearning(labelling, run, training_recipe(run), lines.append), lines, labelling

    return started


def wait_for(lines, count):
    end = time.monotonic() + 30
    while len(lines) < count and time.monotonic() < end:
        time.sleep(0.01)
    assert len(lines) == count, lines


def test_the_least_sure_come_first_and_training_changes_which_they_are(start, give, tmp_path):
    learning, lines, labelling = start(30)
    asked = []
    with learning:
        wait_for(lines, 1)
        for choice in ("a", "tie", "b", "a"):
            asked.append(give(labelling, "ann", choice).pair.id)
        labelling.next_task("ann")  # stays open, whatever the order becomes
        wait_for(lines, 2)
        opened = give(labelling, "ann", "skip").pair.id
        asked += [give(labelling, "ann", "skip").pair.id for _ in range(2)]
    assert asked == ["p10", "p9", "p11", "p8", "p20", "p19"]
    assert opened == "p12"
    assert lines[0].startswith(f"30 pairs ordered by the reward model of {tmp_path / 'run'}, in ")
    assert lines[1].startswith("26 pairs ordered by a reward model of 3 preferences, in ")


def test_without_a_reward_model_the_first_order_is_the_files(start, give):
    learning, lines, labelling = start(30, scored=False)
    with learning:
        assert [give(labelling, "ann", "a").pair.id for _ in range(3)] == ["p0", "p1", "p2"]
        wait_for(lines, 1)
        assert labelling.next_task("bob").pair.id == "p20"


def test_it_is_trained_on_all_labels_by_the_recipe(start, give):
    learning, lines, labelling = start(30, "import shutil; shutil.copy(folder / 'recipe.used', sys.argv[0] + '.yaml')")
    with learning:
        wait_for(lines, 1)
        for _ in range(3):
            give(labelling, "ann", "b")
        wait_for(lines, 2)
    recipe = load_recipe(str(Path(active_learning.COMMAND[1] + ".yaml")))
    assert recipe.data.preferences.endswith("labels.jsonl")
    assert (recipe.data.test_size, recipe.data.preferences_test, recipe.reward.use_margin) == (0.0, None, False)
    assert recipe.model == load_recipe("demo").model
    assert not Path(recipe.data.preferences).exists()


def test_a_command_that_fails_is_told_and_labelling_goes_on(start, give):
    learning, lines, labelling = start(30, "print('one'); sys.exit('data: no good')")
    with learning:
        wait_for(lines, 1)
        for _ in range(9):
            give(labelling, "ann", "a")
        wait_for(lines, 2)
        assert labelling.next_task("ann") is not None
    assert lines[1:] == ["no more rounds of --active, the order stays: `lorarlhf reward` ended with 1: data: no good"]


def test_it_ends_with_the_page(start, give):
    learning, lines, labelling = start(30, "import time; time.sleep(60)")
    began = time.monotonic()
    with learning:
        wait_for(lines, 1)
        for _ in range(3):
            give(labelling, "ann", "a")
        while learning._process.poll() is not None:  # that of the first order
            time.sleep(0.01)
    assert time.monotonic() - began < 30
    assert learning._process.poll() is not None
    assert len(lines) == 1


def test_refusals(write_pairs, labels_path, tmp_path):
    def refusal(*args):
        outcome = CliRunner().invoke(collect_app, ["--pairs", str(write_pairs(1)), "--out", str(labels_path), *args])
        assert isinstance(outcome.exception, UserError)
        return str(outcome.exception)

    assert refusal("--active").startswith("--active: goes with --run RUN")
    assert refusal("--run", str(tmp_path)).startswith("--active: goes with --run RUN")
    assert "not a run, there is no recipe.yaml" in refusal("--run", str(tmp_path), "--active")
    assert not labels_path.exists()


@pytest.mark.slow
def test_with_a_real_model(run_collect, tmp_path, labels_path):
    rows = (Path(__file__).parents[2] / "data/demo/preferences.jsonl").read_text().splitlines()[:80]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(rows) + "\n")
    run = Run(tmp_path / "run")
    run.write_recipe(small_recipe(tmp_path))
    running = run_collect("--pairs", pairs, "--out", labels_path, "--run", run.path, "--active")
    label(running.link, "ann", 60, 0.0, 0)
    line = running.process.stdout.readline()
    assert re.fullmatch(r"collect: 2\d pairs ordered by a reward model of 5\d preferences, in \d+ s\n", line)
    running.stop(signal.SIGINT)

"""Scripts of `benchmarks/` whose figures are drawn: growth and flame graphs."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS, DOCS = ROOT / "benchmarks", ROOT / "docs"
STACKS = [
    "<module> (ppo.py:1);train (lorarlhf/rl/loop.py:54);_iteration (lorarlhf/rl/loop.py:81);"
    "update (lorarlhf/rl/update.py:38);Module._call_impl (torch/nn/modules/module.py:1782);"
    "Linear.forward (/home/me/lib/python3.11/site-packages/torch/nn/modules/linear.py:130) 30",
    "<module> (ppo.py:1);train (lorarlhf/rl/loop.py:54);_iteration (lorarlhf/rl/loop.py:81);"
    "score (/home/me/lorarlhf/score.py:25) 10",
    "<module> (ppo.py:1);Planner.ppo (lorarlhf/planner/plan.py:138) 99",
]


@pytest.fixture
def script(monkeypatch):
    """A script's module, found as scripts find one another."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module


def test_the_tables_of_growth_are_what_was_measured(script):
    pytest.importorskip("matplotlib")
    results = json.loads((BENCHMARKS / "results" / "cpu-scaling.json").read_text(encoding="utf-8"))
    text = (DOCS / "growth.md").read_text(encoding="utf-8")
    for table in script("growth_figure").tables(results).split("\n\n"):
        assert table in text


def test_growth_is_drawn_with_text_as_text(script):
    pytest.importorskip("matplotlib")
    figure = script("growth_figure")
    results = json.loads((BENCHMARKS / "results" / "cpu-scaling.json").read_text(encoding="utf-8"))
    drawn = figure.draw(results)
    assert drawn == figure.draw(results)
    assert {"responses to a prompt", "24 GiB", "32.8"} <= set(re.findall(r">([^<>]+)</text>", drawn))
    assert [place for place, _ in figure.line_of(results["measured"], "batch")] == [8, 16, 32, 64]
    runs = [{"point": 1, "seconds_an_iteration": s, "peak_memory_gb": gb} for s, gb in ((3, 1.0), (2, 0.9))]
    assert figure.best(runs, 1) == {"point": 1, "seconds_an_iteration": 2, "peak_memory_gb": 1.0}


@pytest.mark.parametrize("name", ["growth.svg", "flame.svg"])
def test_pictures_are_small_and_name_no_folder_of_a_machine(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert not re.search(r"(/home/|/root/|/work/|site-packages|<script)", text)


def test_a_flame_graph_is_of_the_iteration_alone(script):
    flame = script("flame")
    tree = flame.tree_of(STACKS)
    assert tree.samples == 40
    boxes = {box.name: (box.file, box.samples) for box in tree.calls.values()}
    assert boxes == {"update": ("lorarlhf/rl/update.py", 30), "score": ("score.py", 10)}
    (linear,) = next(box for box in tree.calls.values() if box.name == "update").calls.values()
    assert (linear.name, linear.file) == ("Linear.forward", "torch/nn/modules/linear.py")


def test_flame_graphs_have_one_scale(script):
    flame = script("flame")
    drawn = flame.draw([(flame.tree_of(STACKS), 8.0, "before"), (flame.tree_of(STACKS[:1]), 2.0, "after")])
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="15"', drawn)]
    assert widths == [960, 240, 720, 720, 240, 240, 240]
    assert "update (lorarlhf/rl/update.py): 6.00 s" in drawn


def test_one_thing_at_a_time_is_varied(script):
    scaling = script("scaling")
    axes = {"model": ["a", "b"], "batch": [8, 16], "response": [4], "generations": [2], "processes": [1]}
    assert [(p.model, p.batch) for p in scaling.points(axes)] == [("a", 8), ("b", 8), ("a", 16)]


def test_what_is_measured_is_not_measured_again(script, monkeypatch, tmp_path):
    scaling = script("scaling")
    wanted, ran = [scaling.Point("cpu-small", batch, 4, 2, 1) for batch in (4, 8)], []

    def run(point, options, results):
        if len(ran) == 3:
            raise RuntimeError
        ran.append(point.batch)
        return {"seconds_an_iteration": 1.0}

    monkeypatch.setattr(scaling, "run", run)
    out = tmp_path / "out.json"
    with pytest.raises(RuntimeError):
        scaling.measure(wanted, 2, "--epochs 1", {}, out)
    scaling.measure(wanted, 1, "--epochs 1", json.loads(out.read_text()), out)
    assert ran == [4, 8, 4]
    with pytest.raises(SystemExit, match="measured with '--epochs 1'"):
        scaling.measure(wanted, 2, "--epochs 2", json.loads(out.read_text()), out)


def test_more_tokens_at_a_time_are_planned_to_take_more(script, monkeypatch):
    scaling = script("scaling")
    monkeypatch.setattr(scaling, "BUDGETS", (512, 4096))
    few, many = scaling.planned("cpu-small")
    assert few["gb"]["update"] < many["gb"]["update"]
    assert few["gb"]["rollout"] == many["gb"]["rollout"] > few["gb"]["weights"] > 0


@pytest.mark.slow
def test_two_processes_share_a_run(script):
    scaling = script("scaling")
    results = {}
    alone, shared = (
        scaling.run(scaling.Point("cpu-small", 16, 4, 2, processes), scaling.OPTIONS, results) for processes in (1, 2)
    )
    assert results["threads"] == 1
    assert alone["seconds"].keys() == shared["seconds"].keys() == {"rollout", "score", "update"}
    assert shared["seconds"]["update"] < alone["seconds"]["update"]


def test_objects_of_all_processes_are_read(script):
    command = ["-c", "print('{\"a\": 1}'); print('no object'); print('{\"a\": 2}')"]
    assert script("compare").outcomes(command) == [{"a": 1}, {"a": 2}]
    with pytest.raises(SystemExit, match="failed"):
        script("compare").outcomes(["-c", "1 / 0"])

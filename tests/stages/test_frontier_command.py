"""`lorarlhf evaluate --frontier`: each checkpoint of a run, and best-of-n, by the run's reward and by a judge."""

import json
import shutil
import sys
from itertools import pairwise

import pytest
from demo_runs import DEMO, read_jsonl, save_random_adapter, short_is_good, small_recipe, write_jsonl

from lorarlhf.cli.main import main
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.preferences.best_of import best_of_kl
from lorarlhf.run import Run
from lorarlhf.stages.ppo import train_ppo

PROMPTS = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has kept its three checkpoints, and the run of a judge."""
    folder = tmp_path_factory.mktemp("frontier")
    sets = ["ppo.iterations=3", "ppo.save_every=1", "ppo.save_total_limit=null", "ppo.advantage_estimator=rloo"]
    sets += ["ppo.learning_rate=0.01", 'ppo.reward_functions=["demo_runs:short_is_good"]']
    recipe, run, judge = small_recipe(folder, *sets), Run(folder / "run"), Run(folder / "judge")
    train_ppo(recipe, run)
    judge.write_recipe(recipe)
    save_random_adapter(recipe, judge, "reward")
    return run, judge


@pytest.fixture
def run(trained, tmp_path):
    """A copy, to be spoilt."""
    return Run(shutil.copytree(trained[0].path, tmp_path / "run"))


@pytest.fixture
def frontier(monkeypatch, capsys, prompts):
    """`frontier(run, *arguments)`: exit code, stdout and stderr."""

    def call(run, *arguments):
        command = ["lorarlhf", "evaluate", "--run", run.path, "--frontier", "--dataset", prompts, *arguments]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def written(run):
    return json.loads((run.stage("ppo") / "frontier.json").read_text())


def test_a_run_and_its_judge(frontier, trained, run, prompts, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    asked = []

    def score(self, prompts, texts):
        asked.append([*zip(map(str, prompts), texts, strict=True)])
        return short_is_good(prompts, texts)

    monkeypatch.setattr(RewardModel, "score", score)
    figure = tmp_path / "figure.svg"
    code, out, err = frontier(run, "--judge", trained[1].path, "--best-of", 3, "--plot", figure)
    assert code == 0, err
    found = written(run)
    assert [row["iteration"] for row in found["checkpoints"]] == [0, 1, 2, 3]
    assert (found["reference"], found["prompts"], found["judge"]) == ("base", PROMPTS, str(trained[1].path))
    assert found["algorithm"] == "RLOO"
    kl = [row["kl"] for row in found["checkpoints"]]
    assert kl[0] == 0
    assert all(a != b for a, b in pairwise(kl)), "each is another policy"
    [pairs] = asked  # once, about all, and about nothing twice
    assert len(set(pairs)) == len(pairs) <= (4 + 3) * PROMPTS
    for row in found["checkpoints"] + found["best_of"]:
        low, high = row["reward_interval"]
        assert low < row["reward"] < high
        assert row["judge_reward"] == pytest.approx(row["reward"], abs=1e-5), "here it judges as the run rewards"
    assert [(row["n"], row["kl_bound"]) for row in found["best_of"]] == [(2, best_of_kl(2)), (3, best_of_kl(3))]
    assert found["best_of"][0]["reward"] < found["best_of"][1]["reward"]
    assert found["over_optimisation"]["outcome"] in ("not_seen", "unclear", "judge_falls")
    assert "answered 42/42" in out
    assert figure.is_file()


def test_without_a_judge_the_run_alone_and_a_figure_that_cannot_be_written(frontier, run, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    code, out, err = frontier(run, "--best-of", 1, "--out", tmp_path / "f.json", "--plot", tmp_path / "file" / "f.png")
    assert code == 2
    assert "f.png: cannot be written: " in err
    found = json.loads((tmp_path / "f.json").read_text())  # what was measured is there
    assert (found["judge"], found["over_optimisation"], found["best_of"]) == (None, None, [])
    assert not any("judge" in key for row in found["checkpoints"] for key in row)
    assert "the run's own reward cannot say; give a reward model it was not trained against with --judge" in out
    assert not (run.stage("ppo") / "frontier.json").exists()


def test_a_damaged_checkpoint_is_passed_over(frontier, run, prompts, monkeypatch):
    """And of another the frontier says what evaluate says: the same prompts, random numbers, reference and reward."""
    (run.stage("ppo") / "checkpoint-2" / "policy" / "adapter_model.safetensors").write_bytes(b"cut")
    code, out, err = frontier(run, "--best-of", 1, "--set", "ppo.save_total_limit=2")
    assert code == 0, err
    assert [row["iteration"] for row in written(run)["checkpoints"]] == [0, 1, 3]
    line = f"{run.stage('ppo') / 'checkpoint-2'}: policy/adapter_model.safetensors is not as it was written"
    assert written(run)["passed_over"] == [line]
    assert f"passed over: {line}" in out
    assert "ppo.save_total_limit 2 keeps the last checkpoints alone; train with null to see all" in out
    [*_, point] = written(run)["checkpoints"]
    command = ["lorarlhf", "evaluate", "--run", run.path, "--dataset", prompts, "--checkpoint", "last"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    with pytest.raises(SystemExit):
        main()
    own = json.loads((run.stage("ppo") / "evaluation-checkpoint-3.json").read_text())
    for key in ("kl", "reward"):
        assert point[key] == pytest.approx(own["after"][key], rel=1e-5)
    assert (point["win_rate"], point["win_rate_interval"]) == (own["win_rate"], own["win_rate_interval"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "sft"], "--frontier: measures all checkpoints of ppo; leave out --stage"),
        (["--model", "m"], "leave out --stage, --model and --checkpoint"),
        (["--checkpoint", "1"], "leave out --stage, --model and --checkpoint"),
        (["--judge", "http://u:p@localhost:1/v1"], "--judge http://localhost:1/v1: an endpoint compares, and gives no"),
        (
            ["--judge", "http://localhost:1/v1", "--judge-model", "m"],
            "--judge-model: is of an endpoint, which gives no",
        ),
        (["--judge", "RUN"], "is the run itself, whose policy was trained against it"),
        (["--judge", "gone/model"], "--judge gone/model: cannot load 'gone/model'"),
        (["--plot", "figure.pdf"], "figure.pdf: must end in .png or .svg"),
        (["--dataset", "gone.jsonl"], "gone.jsonl: no such file"),
        (["--run", "BARE"], "bare/ppo has no whole checkpoint; train with ppo.save_every and "),
        (
            ["--set", "ppo.reward_functions=[]"],
            "run has neither a reward adapter nor ppo.reward_functions to measure by",
        ),
        (["--run", "gone"], "gone: not a run, there is no recipe.yaml"),
    ],
)
def test_faults_are_one_line_and_nothing_is_loaded(frontier, run, tmp_path, monkeypatch, arguments, message):
    bare = Run(tmp_path / "bare")
    bare.write_recipe(run.read_recipe())
    named = {"RUN": run.path, "BARE": bare.path}
    monkeypatch.setattr("lorarlhf.stages.frontier.load_backbone", lambda *args: pytest.fail("loaded"))
    code, out, err = frontier(run, *(named.get(part, part) for part in arguments))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err
    assert "Traceback" not in out + err


def test_without_matplotlib_nothing_is_computed(frontier, run, tmp_path, monkeypatch):
    monkeypatch.setattr("lorarlhf.stages.frontier.load_backbone", lambda *args: pytest.fail("loaded"))
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = frontier(run, "--plot", tmp_path / "f.png")
    assert code == 2
    assert "install it with: pip install 'lorarlhf[plots]'" in err


def test_options_of_the_frontier_alone(run, monkeypatch, capsys):
    for option, value in (("--plot", "f.png"), ("--best-of", "4")):
        monkeypatch.setattr(sys, "argv", ["lorarlhf", "evaluate", "--run", str(run.path), option, value])
        with pytest.raises(SystemExit):
            main()
        assert capsys.readouterr().err == f"Error: {option}: goes with --frontier\n"


def test_one_prompt_has_no_interval(frontier, run, tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", read_jsonl(DEMO / "prompts_test.jsonl")[:1])
    code, _, err = frontier(run, "--dataset", one)
    assert code == 2
    assert "one prompt has no interval; hold out more, or give some with --dataset" in err

"""`lorarlhf evaluate`: any stage of a run on held-out or other data."""

import json
import shutil
import sys
from functools import partial

import pytest
from demo_runs import DEMO, read_jsonl, run_with, small_recipe, write_jsonl

from lorarlhf.cli.main import main
from lorarlhf.data.examples import in_test_part
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.manifest import written_whole
from lorarlhf.run import Run
from lorarlhf.stages.export import export_run
from lorarlhf.stages.reward import train_reward


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """`evaluate(run, *arguments)`: exit code, stdout and stderr."""

    def call(run, *arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["lorarlhf", "evaluate", "--run", str(run.path), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def make_run(tmp_path):
    """`make_run(stages, *sets)`: a run with random adapters of these stages."""

    return partial(run_with, tmp_path)


def written(run, stage):
    return json.loads((run.stage(stage) / "evaluation.json").read_text())


def test_a_reward_model_is_as_good_as_its_training_said(evaluate, tmp_path):
    run = Run(tmp_path / "run")
    summary = train_reward(small_recipe(tmp_path), run)
    code, out, err = evaluate(run)
    assert code == 0, err
    found = written(run, "reward")
    shared = {key for key in found if key in summary and key.startswith(("eval_", "longer_"))}
    assert len(shared) == 6
    assert all(found[key] == pytest.approx(summary[key]) for key in shared)
    assert (found["examples"], found["dropped_too_long"]) == (summary["eval_examples"], 0)
    low, high = found["eval_accuracy_interval"]
    assert f"accuracy           {found['eval_accuracy']:.1%}  (95%: {low:.1%} to {high:.1%})" in out
    assert "reward on 12 comparisons of " in out
    assert "scored 24/24" in out  # both sides of twelve
    assert "\x1b" not in out


def test_a_reward_model_on_other_data(evaluate, make_run, tmp_path):
    run = make_run(["reward"])
    rows = [json.loads(line) for line in (DEMO / "preferences_test.jsonl").read_text().splitlines()[:5]]
    other = write_jsonl(tmp_path / "other.jsonl", rows)
    code, out, err = evaluate(run, "--stage", "reward", "--dataset", other, "--out", tmp_path / "new" / "e.json")
    assert code == 0, err
    found = json.loads((tmp_path / "new" / "e.json").read_text())
    assert (found["examples"], found["data"]) == (5, str(other))
    assert not (run.stage("reward") / "evaluation.json").exists()
    rated = write_jsonl(
        tmp_path / "rated.jsonl",
        [{"prompt": r["prompt"], "completion": r["chosen"], "score": i} for i, r in enumerate(rows)],
    )
    # The run's own data are pairs, which no ratings can be read of: there is nothing that they are needed for.
    code, out, err = evaluate(run, "--dataset", rated, "--set", "reward.objective=regression")
    assert code == 0, err
    assert "cannot be read" not in err
    assert "reward on 5 ratings" in out
    assert set(written(run, "reward")) >= {"eval_loss", "eval_correlation"}


def test_a_part_of_what_is_held_out_is_the_same_part_again(evaluate, tmp_path):
    """And other data are taken whole, unless told otherwise."""
    run = Run(tmp_path / "run")
    summary = train_reward(small_recipe(tmp_path, "data.eval_examples=7", "data.max_examples=20"), run)
    counts = {key: summary[key] for key in ("train_examples", "train_rows", "eval_examples", "eval_rows")}
    assert counts == {"train_examples": 20, "train_rows": 40, "eval_examples": 7, "eval_rows": 12}
    assert evaluate(run)[0] == 0
    found = written(run, "reward")
    assert (found["examples"], found["rows"]) == (7, 12)
    assert all(found[key] == pytest.approx(summary[key]) for key in summary if key.startswith(("eval_m", "bag_of_")))
    other = ["--dataset", tmp_path / "data" / "preferences_test.jsonl"]
    assert evaluate(run, *other)[0] == 0
    assert written(run, "reward")["examples"] == 12
    assert evaluate(run, *other, "--set", "data.eval_examples=3")[0] == 0
    assert written(run, "reward")["examples"] == 3


def test_ppo_is_compared_with_where_it_started(evaluate, make_run, tmp_path):
    run = make_run(["sft", "reward", "ppo"])
    code, out, err = evaluate(run)
    assert code == 0, err
    found = written(run, "ppo")
    assert (found["stage"], found["reference"], found["prompts"]) == ("ppo", "sft", 8)
    assert abs(found["after"]["kl"]) > 1e-3
    assert found["before"]["reward"] != found["after"]["reward"]
    assert all(found[when]["response_length"] <= 12 for when in ("before", "after"))
    assert 0 <= found["win_rate_interval"][0] <= found["win_rate"] <= found["win_rate_interval"][1] <= 1
    [first, *_] = found["samples"]
    assert set(first) == {"prompt", "before", "after", "reward_before", "reward_after"}
    assert first["before"] in out
    assert "ppo against sft on 8 prompts" in out
    assert "wins by reward" in out
    run.write_summary("ppo", {"reference": "base"})
    assert evaluate(run, "--set", "ppo.response_length=3", "--dataset", tmp_path / "data" / "prompts.jsonl")[0] == 0
    other = written(run, "ppo")
    assert (other["reference"], other["prompts"], other["after"]["response_length"]) == ("base", 20, 3)


def test_a_policy_that_did_not_change_is_level(evaluate, make_run):
    run = make_run(["sft", "reward"])
    shutil.copytree(run.stage("sft"), run.stage("ppo"))
    assert evaluate(run)[0] == 0
    found = written(run, "ppo")
    assert found["win_rate"] == 0.5
    assert found["after"].pop("kl") == pytest.approx(0, abs=1e-6)
    assert found["before"] == found["after"]


def test_sft_without_a_reward_model(evaluate, make_run, tmp_path):
    run = make_run(["sft"])
    code, out, err = evaluate(run)
    assert code == 0, err
    found = written(run, "sft")
    prompts = [row["messages"][:-1] for row in read_jsonl(tmp_path / "data" / "sft.jsonl")]
    held_out = list({str(prompt): prompt for prompt in prompts if in_test_part(prompt, 0.2)}.values())
    assert (found["reference"], found["prompts"]) == ("base", len(held_out))
    assert found["samples"][0]["prompt"] == held_out[0][-1]["content"]
    assert found["before"]["reward"] is None
    assert "win_rate" not in found
    assert "none: this run has no reward adapter" in out


def test_functions_give_a_reward_too(evaluate, make_run):
    run = make_run(["ppo"], 'ppo.reward_functions=["demo_runs:short_is_good"]')
    assert evaluate(run)[0] == 0
    sample = written(run, "ppo")["samples"][0]
    assert sample["reward_after"] == pytest.approx(-len(sample["after"]) / 10)


def test_an_exported_policy_is_measured_as_the_run_measures_its_own(evaluate, make_run, tmp_path):
    run = make_run(["sft", "reward", "ppo"])
    export_run(run, tmp_path / "out", "ppo", dtype="float32")
    assert evaluate(run)[0] == 0
    own = written(run, "ppo")
    code, out, err = evaluate(run, "--model", tmp_path / "out")
    assert code == 0, err
    assert written(run, "ppo") == own
    exported = json.loads((run.stage("ppo") / "evaluation_of_model.json").read_text())
    assert (exported["model"], exported["quantization"], exported["reference"]) == (
        str(tmp_path / "out"),
        "none",
        "sft",
    )
    assert f"{tmp_path / 'out'} against sft on 8 prompts" in out
    for key in ("reward", "entropy", "response_length", "kl"):
        assert exported["after"][key] == pytest.approx(own["after"][key], abs=1e-2), key
    assert exported["before"] == own["before"]
    assert evaluate(run, "--model", tmp_path / "out", "--quantization", "nf4", "--out", tmp_path / "e.json")[0] == 0
    quantised = json.loads((tmp_path / "e.json").read_text())
    assert quantised["quantization"] == "nf4"
    assert quantised["after"]["entropy"] != pytest.approx(own["after"]["entropy"], abs=1e-4)


def test_an_exported_reward_model_on_the_runs_comparisons(evaluate, make_run, tmp_path):
    run = make_run(["reward"])
    export_run(run, tmp_path / "out", "reward", dtype="float32")
    assert evaluate(run)[0] == 0
    code, out, err = evaluate(run, "--model", tmp_path / "out")
    assert code == 0, err
    exported = json.loads((run.stage("reward") / "evaluation_of_model.json").read_text())
    assert exported["eval_margin"] == pytest.approx(written(run, "reward")["eval_margin"], abs=1e-3)
    assert exported["eval_accuracy"] == written(run, "reward")["eval_accuracy"]
    assert "reward on 12 comparisons" in out


def test_a_model_that_reads_prompts_otherwise_is_refused(evaluate, make_run, tmp_path):
    run = make_run(["ppo"])
    export_run(run, tmp_path / "out", "ppo")
    template = tmp_path / "out" / "chat_template.jinja"
    template.write_text(template.read_text().replace("bos_token", "bos_token + bos_token", 1))
    code, _, err = evaluate(run, "--model", tmp_path / "out")
    assert code == 2
    assert "out: reads prompts otherwise than the run" in err


def test_a_stage_is_evaluated_with_its_own_recipe(evaluate, make_run, tmp_path):
    run = make_run(["reward"])
    recipe = run.read_recipe()
    other = write_jsonl(tmp_path / "few.jsonl", read_jsonl(tmp_path / "data" / "preferences_test.jsonl")[:3])
    run.write_recipe(
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"preferences_test": str(other)})}), "ppo"
    )
    assert evaluate(run, "--stage", "reward")[0] == 0
    assert written(run, "reward")["examples"] == 3, "a run made before stages had recipes: the run's"
    run.write_recipe(recipe, "reward")
    run.write_recipe(run.read_recipe(stage="ppo"), "ppo")
    assert evaluate(run, "--stage", "reward")[0] == 0
    assert written(run, "reward")["examples"] == 12


def test_another_base_is_refused_unless_it_is_allowed(evaluate, make_run, tmp_path):
    run = make_run(["reward"])
    other = shutil.copytree(DEMO / "model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 1234.0}))
    code, _, err = evaluate(run, "--set", f"model.name={other}")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "run/reward: the adapter was trained on shipped:demo/model, which has another config than" in err
    assert evaluate(run, "--set", f"model.name={other}", "--allow-other-base")[0] == 0


def test_the_policy_of_a_checkpoint(evaluate, make_run):
    """Here the checkpoint's is another than what was kept, whose evaluation stays as it is."""
    run = make_run(["sft", "ppo"], 'ppo.reward_functions=["demo_runs:short_is_good"]')
    with written_whole(run.stage("ppo") / "checkpoint-4") as part:
        shutil.copytree(run.stage("sft"), part / "policy")
    code, _, err = evaluate(run, "--checkpoint", "last")
    assert code == 0, err
    assert not (run.stage("ppo") / "evaluation.json").exists()
    found = json.loads((run.stage("ppo") / "evaluation-checkpoint-4.json").read_text())
    assert found["after"]["kl"] == pytest.approx(0, abs=1e-6), "that of its reference"
    assert evaluate(run)[0] == 0
    assert written(run, "ppo")["after"]["kl"] > 0.1


@pytest.mark.parametrize(
    ("stages", "arguments", "message"),
    [
        ([], [], "run: no stage of this run has an adapter; run `lorarlhf run --recipe "),
        (["reward"], ["--stage", "ppo"], "run/ppo: no adapter there; run `lorarlhf ppo --recipe "),
        (["sft"], ["--stage", "reward"], "run/reward: no adapter there; run `lorarlhf reward --recipe "),
        (["reward"], ["--set", "rewards.x=1"], "--set rewards.x=1: rewards: unknown key; did you mean reward?"),
        (["reward"], ["--dataset", "none.jsonl"], "none.jsonl: no such file"),
        (["reward"], ["--set", "data.preferences_test=null", "--set", "data.test_size=0"], "nothing is held out"),
        (["ppo"], ["--set", "data.prompts_test=null", "--set", "data.test_size=0"], "nothing is held out"),
        (["reward"], ["--quantization", "nf4"], "--quantization: a run has its recipe's; it goes with --model"),
        (["ppo"], ["--model", "m", "--checkpoint", "2"], "--checkpoint: says which adapter of the run is meant"),
        (["ppo"], ["--model", "gone/model"], "model.name: cannot load 'gone/model'"),
        (["reward"], ["--model", "gone/model"], "model.name: cannot load 'gone/model'"),
        (["reward"], ["--checkpoint", "7"], "reward has no such checkpoint; there is best"),
    ],
)
def test_faults_are_one_line(evaluate, make_run, monkeypatch, tmp_path, stages, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = evaluate(make_run(stages), *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("out", "message"), [(".", "--out .: is a folder; name a file in it"), ("notes/e.json", "notes cannot be written")]
)
def test_a_place_for_the_figures_is_looked_at_before_they_are_computed(
    evaluate, make_run, monkeypatch, tmp_path, out, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("a file")
    monkeypatch.setattr("lorarlhf.stages.evaluate.load_backbone", lambda *args: pytest.fail("loaded"))
    code, _, err = evaluate(make_run(["reward"]), "--out", out)
    assert (code, message in err) == (2, True)


def test_data_for_a_reward_model_are_looked_at_before_anything_is_loaded(evaluate, make_run, monkeypatch):
    run = make_run(["reward"])
    monkeypatch.setattr("lorarlhf.stages.evaluate.load_backbone", lambda *args: pytest.fail("loaded"))
    code, _, err = evaluate(run, "--dataset", "none.jsonl")
    assert (code, "none.jsonl: no such file" in err) == (2, True)


def test_a_folder_that_is_no_run(evaluate, tmp_path):
    assert "not a run, there is no recipe.yaml" in evaluate(Run(tmp_path))[2]


def test_a_reward_model_by_group_of_comparisons(evaluate, make_run, tmp_path):
    """`--dataset` with a column that says what a row is about; what is too long leaves its group too."""
    run = make_run(["reward"], "data.max_length=60")
    pairs = read_jsonl(DEMO / "preferences_test.jsonl")[:12]
    rows = [{**pair, "subset": "even" if n % 2 == 0 else "odd", "annotators": ["ann"]} for n, pair in enumerate(pairs)]
    rows[4]["chosen"] = [{"role": "assistant", "content": "a lamp " * 100}]
    code, out, err = evaluate(run, "--dataset", write_jsonl(tmp_path / "pairs.jsonl", rows))
    assert code == 0, err
    found = written(run, "reward")
    assert {name: part["pairs"] for name, part in found["groups"]["subset"].items()} == {"even": 5, "odd": 6}
    assert "annotator" not in found["groups"]  # one alone is no group
    mean = sum(part["accuracy"] * part["pairs"] for part in found["groups"]["subset"].values()) / 11
    assert found["eval_accuracy"] == pytest.approx(mean)
    assert found["reward_bench"] == {}
    assert sum(part["pairs"] for part in found["reliability"]) == 11
    for line in ("subset even", "subset odd", "same length", "bag of words", "reliability"):
        assert f"  {line:18} " in out


def test_a_reward_model_on_reward_bench_2(evaluate, make_run, tmp_path):
    """Every completion is scored once; a prompt of which one is too long is left out whole."""
    run = make_run(["reward"], "data.max_length=60", "data.eval_examples=2")

    def row(number, right, wrong, subset="Math", name=None):
        more = {"id": name or str(number), "subset": subset, "num_correct": len(right), "models": ["m"]}
        return {"prompt": f"Where is lamp {number}?", "chosen": right, "rejected": wrong, **more}

    rows = [row(number, ["in the shop"], ["gone", "a lamp", "no"]) for number in range(6)]
    rows.append(row(6, ["in the shop"], ["gone", "a lamp " * 100]))
    rows.append(row(7, ["here"], ["gone", "no"], "Ties", "ref:0"))
    rows.append(row(8, ["here", "there"], ["gone", "no"], "Ties", "tied:0"))
    bench = write_jsonl(tmp_path / "bench.jsonl", rows)
    code, out, err = evaluate(run, "--dataset", bench)
    assert code == 0, err
    found = written(run, "reward")
    assert (found["examples"], found["rows"], found["dropped_too_long"]) == (8, 9, 1)
    assert {name: part["prompts"] for name, part in found["reward_bench_2"]["subsets"].items()} == {
        "Math": 6,
        "Ties": 1,
    }
    assert f"scored {6 * 4 + 3 + 4}/{6 * 4 + 3 + 4}" in out
    assert f"reward on 8 prompts of {bench}; 1 too long" in out
    asked = [[{"role": "user", "content": each["prompt"]}] for each in rows[:6]]
    model = RewardModel.from_run(run)
    best = [
        max(answers := [*each["chosen"], *each["rejected"]], key=dict(zip(answers, scores, strict=True)).get)
        for each, prompt in zip(rows, asked, strict=False)
        if (scores := model.score([prompt] * 4, [*each["chosen"], *each["rejected"]]))
    ]
    right = best.count("in the shop") / 6
    assert found["reward_bench_2"]["subsets"]["Math"]["score"] == pytest.approx(right)
    assert f"  {'Math':18} {right:.1%}" in out
    assert "mean of subsets" in out


def test_without_its_training_rows_a_bag_of_words_is_not_measured(evaluate, make_run, tmp_path, caplog):
    run = make_run(["reward"])
    (tmp_path / "data" / "preferences.jsonl").unlink()
    code, out, err = evaluate(run)
    assert code == 0, err
    assert "a bag of words is not measured, as what the run trained on cannot be read: " in caplog.text
    assert "bag of words " not in out
    assert "bag_of_words_accuracy" not in written(run, "reward")

"""What a report reads from a run's folder, whole, half, strange or hostile."""

import json
import os
import shutil
import sys
from subprocess import run as run_process

import pytest

from lorarlhf.errors import UserError
from lorarlhf.reporting.changes import change
from lorarlhf.reporting.collect import collect, compare
from lorarlhf.reporting.plots import ROWS, readable_number, table
from lorarlhf.run import of_adapter, write_json


def read(run, **more):
    return collect(run.path, run.path.name, **more)


def texts(pieces):
    return "".join(piece.text for piece in pieces), [piece.text.strip() for piece in pieces if piece.changed]


def test_changed_words_are_marked_and_nothing_is_lost():
    found = change("We have  no\n\npears today.", "We have plums today. ")
    assert texts(found.before) == ("We have  no\n\npears today.", ["no\n\npears"])
    assert texts(found.after) == ("We have plums today.", ["plums"])
    assert 0 < found.share < 1
    assert change("a b", "a  b").share == 0
    assert (change("", "x y").share, change("", "").share) == (1, 0)


def test_a_finished_run(make_run):
    report = read(make_run())
    assert dict(report.trained_on)["base model"] == "shipped:demo/model"
    assert dict(report.trained_on)["reward"] == "shipped:demo/preferences.jsonl, 100 rows"
    assert [(section.stage, section.progress) for section in report.stages] == [
        ("reward", "finished: 20 steps"),
        ("ppo", "finished: 3 iterations"),
    ]
    reward, ppo = report.stages
    assert ("eval accuracy", "0.800  (95%: 0.700 to 0.900)") in reward.facts
    accuracy = next(plot for plot in reward.curves if plot.title == "accuracy")
    assert accuracy.series[1].points == ((20, 0.8),)
    assert accuracy.series[1].intervals == ((0.7, 0.9),)
    assert [plot.title for plot in ppo.curves if not plot.minor] == ["reward", "kl", "entropy"]
    assert [(one.name, len(one.points)) for one in ppo.curves[0].series] == [
        ("training", 3),
        ("held out", 2),
        ("kept", 1),
    ]
    assert ppo.curves[0].table.heads == ("iteration", "training", "held out", "kept")
    assert ppo.curves[0].table.rows[-1] == ("3", "0.300", "0.250", "0.250")
    assert report.warnings == (("ppo, iteration 3", "all responses are cut off"),)


def test_where_time_and_memory_went(make_run):
    costs = read(make_run()).costs
    assert costs.totals == (
        ("reward", "all", "12", "0.500"),
        ("ppo", "all", "9", "0.600"),
        ("ppo", "rollout", "3", ""),
        ("ppo", "update", "6", ""),
    )
    assert [one.name for one in costs.phases.series] == ["rollout", "update"]


def test_time_in_no_phase_is_told_too(make_run):
    run = make_run()
    run.write_summary("ppo", {**run.read_summary("ppo"), "seconds": 13.5})
    assert read(run).costs.totals[-1] == ("ppo", "evaluations and the rest", "4.500", "")


def test_the_reward_model_is_judged(make_run, frontier):
    run = make_run()
    frontier(run)
    judged = read(run, doubts={"reward": "beats nothing"}, verdict="it goes too far").judged
    assert judged.reliability.series[0].points == ((0.6, 0.7), (0.9, 0.85))
    assert judged.margins.series[0].points == ((-0.5, 6), (0.5, 24))
    assert [one.name for one in judged.over_kl.series] == ["training", "held out", "kept"]
    assert [plot.title for plot in judged.frontier] == [
        "reward over KL, checkpoints",
        "judge's reward over KL, checkpoints",
    ]
    assert judged.frontier[0].series[1].points == ((0.19, 1.0),)
    assert judged.frontier_lines == ("30 prompts of held-out.jsonl", "judged by another model", "it goes too far")
    assert ("reward", "beats nothing") in read(run, doubts={"reward": "beats nothing"}).warnings


def test_samples_before_and_after(make_run):
    samples = read(make_run()).samples
    assert (samples.before, samples.after) == ("iteration 0", "iteration 3, the policy kept")
    first, second, third = samples.samples
    assert (first.prompt, second.prompt[0]) == ((("", "Where is my parcel?"),), ("user", "Have you got pears?"))
    assert (first.reward_before, first.reward_after, first.words) == (0, 5, 5)
    assert third.change.share == 0 < second.change.share < first.change.share


def test_a_policy_kept_from_before_training_is_not_compared_with_itself(make_run):
    run = make_run()
    summary = run.read_summary("ppo")
    run.write_summary("ppo", {**summary, "improved": False, "best": summary["before"]})
    report = read(run)
    assert report.samples.after == "iteration 3, the last evaluation"
    assert report.samples.samples[0].change.share > 0
    assert any("from before training" in text for _, text in report.warnings)


def test_samples_of_an_evaluation_where_ppo_left_none(make_run):
    run = make_run()
    (run.path / "ppo" / "samples.jsonl").unlink()
    rows = [{"prompt": "Hello", "before": "x", "after": "y z"}]
    found = {"stage": "ppo", "reference": "base", "samples": rows}
    (run.path / "ppo" / "evaluation.json").write_text(json.dumps(found))
    samples = read(run).samples
    assert (samples.before, samples.after, samples.samples[0].words) == ("base", "ppo", 2)


def test_what_was_measured_before_training_went_on_is_left_out(make_run, frontier):
    run = make_run()
    frontier(run)
    weights = run.path / "ppo" / "adapter_model.safetensors"
    weights.write_bytes(b"first")
    for name in ("evaluation.json", "frontier.json"):
        path = run.path / "ppo" / name
        measured = json.loads(path.read_text()) if name == "frontier.json" else {"win_rate": 0.875}
        write_json(path, {**measured, **of_adapter(run.path / "ppo")})
    os.utime(weights, ns=(2**62, 2**62))  # as in a copy: times say nothing
    report = read(run)
    assert report.stages[-1].evaluated == (("win rate", "0.875"),)
    assert report.judged.frontier
    assert not any(where == "files" for where, _ in report.warnings)
    weights.write_bytes(b"later")  # as if a --resume had trained on since
    report = read(run)
    assert report.stages[-1].evaluated == ()
    assert (report.judged.frontier, report.judged.frontier_lines) == ((), ())
    faults = [text.partition(":")[::2] for where, text in report.warnings if where == "files"]
    why = " of another adapter than lies beside it; left out, `lorarlhf evaluate` makes it anew"
    assert faults == [("ppo/evaluation.json", why), ("ppo/frontier.json", why)]


def test_a_run_that_goes_on_or_was_stopped(make_run):
    run = make_run()
    (run.path / "ppo" / "summary.json").unlink()
    with (run.path / "ppo" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "rew')  # being written
    report = read(run)
    ppo = report.stages[-1]
    assert not ppo.finished
    assert ppo.progress.startswith("not finished: 3 of 3 iterations so far")
    assert ("ppo", ppo.progress) in report.warnings
    assert not any(where == "files" for where, _ in report.warnings)
    assert report.samples.after == "iteration 3, the last evaluation"


def test_a_run_that_goes_on_after_its_summary(make_run):
    run = make_run(iterations=3)
    with (run.path / "ppo" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "reward": 1.0}\n')
    assert read(run).stages[-1].progress.startswith("not finished: 4 of 3")


def test_a_stage_too_short_to_log_shows_what_it_came_to(make_run):
    run = make_run()
    (run.path / "reward" / "metrics.jsonl").write_text("")
    (accuracy,) = read(run).stages[0].curves
    assert accuracy.title == "accuracy"
    assert accuracy.table.rows == (("20", "0.800"),)


def test_a_stage_that_has_just_begun(make_run):
    run = make_run()
    for path in (run.path / "ppo").iterdir():
        path.unlink()
    report = read(run)
    assert report.stages[-1].curves == ()
    assert (report.samples, report.judged.over_kl, report.costs.phases) == (None, None, None)


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"not a run, there is no recipe.yaml"):
        collect(tmp_path, "x")


def test_what_cannot_be_read_is_left_out_and_told(make_run, tmp_path):
    run = make_run()
    (run.path / "recipe.yaml").write_text("model: [unclosed\n")
    with (run.path / "ppo" / "metrics.jsonl").open("a") as file:
        file.write('nonsense\n[1]\n{"iteration": 3, "reward": NaN, "kl": "much", "x": true}\n')
    (run.path / "reward" / "summary.json").write_text("[" * 100_000)
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "hunter2"}')
    (run.path / "ppo" / "evaluation.json").symlink_to(secret)
    report = read(run)
    faults = [text for where, text in report.warnings if where == "files"]
    assert any(text.startswith("ppo/metrics.jsonl:6: not a JSON object; left out (2") for text in faults)
    assert "reward/summary.json: not a JSON object; left out" in faults
    assert "ppo/evaluation.json: a link that leads out of the run's folder; left out" in faults
    assert any(text.startswith("recipe.yaml:") for text in faults)
    assert "hunter2" not in repr(report)
    assert report.stages[-1].curves[0].series[0].points[-1] == (3, pytest.approx(0.3))


def test_recipes_from_elsewhere_extend_nothing(make_run, tmp_path):
    run = make_run()
    (tmp_path / "other.yaml").write_text("seed: 77\n")
    (run.path / "recipe.yaml").write_text(f"extends: {tmp_path / 'other.yaml'}\n")
    assert read(run).settings == {"extends": str(tmp_path / "other.yaml")}


def test_several_runs_are_compared(make_run):
    reports = [read(make_run("a")), read(make_run("b", ["ppo.kl_coef=0.5"]))]
    compared = compare(reports)
    assert compared.settings.heads == ("key", "a", "b")
    assert compared.settings.rows == (("ppo.kl_coef", "0.1", "0.5"),)
    assert ("ppo: iterations", "3", "3") in compared.figures.rows
    reward = next(plot for plot in compared.plots if plot.title == "ppo: reward, held out")
    assert [(one.name, one.colour) for one in reward.series] == [("a", 0), ("b", 1)]


def test_a_run_has_one_colour_whichever_stages_the_others_have(make_run):
    first, second = make_run("a"), make_run("b")
    shutil.rmtree(first.path / "reward")
    compared = compare([read(first), read(second)])
    loss = next(plot for plot in compared.plots if plot.title == "reward: loss, training")
    assert [(one.name, one.colour) for one in loss.series] == [("b", 1)]


def test_what_a_stage_was_run_with(make_run):
    run = make_run()
    text = (run.path / "recipe.yaml").read_text()
    (run.path / "reward" / "recipe.yaml").write_text(
        text.replace("seed: 42", "seed: 5").replace("demo/preferences.jsonl", "x")
    )
    report = read(run)
    assert report.stages[0].other_settings.rows == (
        ("data.preferences", "shipped:x", "shipped:demo/preferences.jsonl"),
        ("seed", "5", "42"),
    )
    assert dict(report.trained_on)["reward"] == "shipped:x, 100 rows"


def test_long_tables_are_thinned_out():
    rows = [(str(i),) for i in range(3 * ROWS - 1)]
    found = table(("i",), rows)
    assert len(found.rows) <= ROWS + 1
    assert found.rows[-1] == rows[-1]
    assert found.note == "one row in 3 of 599; all of them are in the run's folder"


def test_numbers_are_short():
    assert [readable_number(value) for value in (3.0, 0.123456, 0.00001234, 12345.6)] == [
        "3",
        "0.123",
        "1.23e-05",
        "12,346",
    ]


def test_neither_torch_nor_matplotlib_to_read_a_run():
    code = "import sys, lorarlhf.stages.report; print({'torch', 'matplotlib', 'datasets'} & set(sys.modules))"
    done = run_process([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

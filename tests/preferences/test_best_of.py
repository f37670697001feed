"""`lorarlhf sample --best-of`: of several responses the one that the reward model likes best."""

import json
import math
import sys
from itertools import combinations
from statistics import mean

import numpy as np
import pytest
from demo_runs import DEMO, read_jsonl, run_with, save_random_adapter, write_jsonl

from lorarlhf.cli.main import main
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.preferences.best_of import best_of_kl, rank_weights
from lorarlhf.run import Run
from lorarlhf.stages.sample import of_start


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_with(tmp_path_factory.mktemp("best_of"), ("sft", "reward"))


@pytest.fixture
def prompts(tmp_path):
    return write_jsonl(tmp_path / "prompts.jsonl", read_jsonl(DEMO / "prompts.jsonl")[:40])


@pytest.fixture
def sample(monkeypatch, capsys):
    """`sample(*arguments)`: exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lorarlhf", "sample", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def test_the_best_by_the_runs_reward_model_is_kept(sample, run, prompts, tmp_path):
    out = tmp_path / "new" / "best.jsonl"
    code, said, error = sample("--run", run.path, "--prompts", prompts, "--best-of", 3, "--out", out)
    assert code == 0, error
    rows = read_jsonl(out)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in read_jsonl(prompts)]
    assert {row["of"] for row in rows} == {3}
    assert all(row["score"] >= row["first_score"] for row in rows)
    best, first = (sum(row[key] for row in rows) / 40 for key in ("score", "first_score"))
    assert best > first
    assert f"the best of 3 responses to 40 prompts in {out}: mean score {best:.3f}, of the first {first:.3f}; " in said
    assert f"KL at most {math.log(3) - 2 / 3:.3f} nats" in said
    again = RewardModel.from_run(run).score(
        [row["prompt"] for row in rows], [row["response"][0]["content"] for row in rows]
    )
    # What was cut at the limit is scored without the token that ends a response.
    same = sum(score == pytest.approx(row["score"], abs=1e-3) for row, score in zip(rows, again, strict=True))
    assert same > 0


def test_none_of_the_responses_scores_higher(sample, run, prompts, tmp_path, monkeypatch):
    from lorarlhf.preferences import best_of

    drawn, real = [], best_of.scored_responses
    monkeypatch.setattr(best_of, "scored_responses", lambda *args: drawn.append(real(*args)) or drawn[-1])
    out = tmp_path / "best.jsonl"
    assert sample("--run", run.path, "--prompts", prompts, "--best-of", 4, "--out", out)[0] == 0
    responses = [some for batch in drawn for some in batch]
    assert all(len(some) == 4 for some in responses)
    for row, some in zip(read_jsonl(out), responses, strict=True):
        assert row["score"] == max(score for _, score in some)
        assert (row["response"][0]["content"], row["score"]) in some
        assert row["first_score"] == some[0][1]


def test_it_goes_on_where_it_was_stopped(sample, run, prompts, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    arguments = ["--run", run.path, "--prompts", prompts, "--best-of", 2]
    assert sample(*arguments, "--out", whole)[0] == 0
    torn.write_text(whole.read_text()[:-200])
    assert sample(*arguments, "--out", torn)[0] == 0
    assert torn.read_text() == whole.read_text()
    code, _, error = sample(*arguments[:-1], 3, "--out", torn)
    assert code == 2
    assert f"{torn}: was sampled with best-of 2 (now 3); give the same options, or another --out" in error


def test_it_is_the_policy_that_ppo_starts_from(run, tmp_path):
    assert of_start(run).sources == [str(run.stage("sft"))]
    assert of_start(run, ["base"]).sources == ["base"]
    bare = Run(tmp_path / "bare")
    bare.write_recipe(run.read_recipe())
    assert of_start(bare).sources == ["base"]
    later = Run(tmp_path / "later")
    later.write_recipe(run.read_recipe())
    save_random_adapter(run.read_recipe(), later, "sft")
    later.stage("ppo").mkdir()
    later.write_summary("ppo", {"reference": "base"})  # sft came after it
    assert of_start(later).sources == ["base"]


def test_another_adapter_and_another_reward(sample, run, prompts, tmp_path):
    outs = [tmp_path / f"{name}.jsonl" for name in ("base", "sft")]
    for out, adapter in zip(outs, ("base", run.stage("sft")), strict=True):
        arguments = ["--model", "shipped:demo/model", "--quantization", "nf4", "--response-length", 12]
        arguments += ["--reward", run.stage("reward"), "--adapters", adapter]
        code, _, error = sample(*arguments, "--prompts", prompts, "--best-of", 2, "--out", out)
        assert code == 0, error
    base, sft = map(read_jsonl, outs)
    assert [row["response"] for row in base] != [row["response"] for row in sft]
    assert json.loads(outs[1].read_text().splitlines()[0])["options"]["adapters"] == str(run.stage("sft"))


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_distance_is_that_of_the_best_of_n_of_a_fine_grained_policy(n):
    """Of 4,000 equally likely responses in the order of their scores, best of n picks the k-th with a known chance."""
    size = 4000
    chances = [((k + 1) / size) ** n - (k / size) ** n for k in range(size)]
    kl = sum(p * math.log(p * size) for p in chances if p > 0)
    assert best_of_kl(n) == pytest.approx(kl, abs=0.01)
    assert kl < best_of_kl(n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "2"], "--best-of: says how many responses there are and which is kept; leave out --n and --pick"),
        (["--pick", "all"], "leave out --n and --pick"),
        (["--adapters", "a", "b"], "--adapters: takes one, with --best-of; there is a b"),
        (["--checkpoint", "last"], "--checkpoint: says which policy of --run"),
        (["--reward", "nowhere"], "--best-of: no reward adapter in nowhere; give one with --reward"),
    ],
)
def test_what_does_not_go_together(sample, run, tmp_path, arguments, message):
    code, _, error = sample(
        "--run", run.path, "--prompts", "p", "--out", tmp_path / "o.jsonl", "--best-of", 2, *arguments
    )
    assert code == 2
    assert len(error.splitlines()) == 1
    assert message in error


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_best_of_n_of_more_is_the_mean_over_all_draws(n):
    scores, judged = np.random.default_rng(0).standard_normal((2, 6))
    weights = rank_weights(n, 6)
    order = scores.argsort()
    draws = [max(draw, key=lambda k: scores[k]) for draw in combinations(range(6), n)]
    assert weights.sum() == pytest.approx(1)
    assert scores[order] @ weights == pytest.approx(mean(scores[k] for k in draws))
    assert judged[order] @ weights == pytest.approx(mean(judged[k] for k in draws))


def test_weights_of_many():
    assert rank_weights(512, 1024).sum() == pytest.approx(1)

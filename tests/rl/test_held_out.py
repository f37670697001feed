"""Held-out evaluation, the choice of the best policy, and the order in which prompts come."""

from itertools import product

import pytest
import torch
from demo_runs import equal, read_jsonl, weights
from loops import length_score, randomise, rows_of

from lorarlhf.errors import UserError
from lorarlhf.rl.process_group import ProcessGroup, Share
from lorarlhf.rl.prompts import PromptStream, is_due, prompt_rows

# Evaluation


def scores_in_turn(*scores):
    remaining = iter(scores)
    return lambda rollout, prompts, trunk: torch.full((len(prompts),), next(remaining))


def test_the_best_evaluation_is_kept(loop):
    made = loop("ppo.kl_coef=0.0", reward=scores_in_turn(1.0, 3.0, 2.0, 3.0))
    kept = []
    for iteration in range(4):
        made.evaluate(iteration)
        kept.append(weights(made.backbone, "policy"))
        randomise(made.backbone, 0.01, "policy")
    assert made.state.best.row["iteration"] == 1, "the first of equals"
    made.backbone.load_role("policy", made.folder / "best")
    assert equal(weights(made.backbone, "policy"), kept[1])
    assert made.state.first.row["eval_reward"] == 1.0
    assert [row["eval_reward"] for row in rows_of(made)] == [1.0, 3.0, 2.0, 3.0]


def test_the_best_is_so_by_reward_less_kl(loop):
    made = loop("ppo.kl_coef=100.0", reward=scores_in_turn(1.0, 2.0, 3.0))
    for iteration in range(3):
        made.evaluate(iteration)
        randomise(made.backbone, 0.1, "policy")
    rows = rows_of(made)
    objectives = [row["eval_reward"] - 100 * row["eval_kl"] for row in rows]
    assert [row["eval_objective"] for row in rows] == pytest.approx(objectives)
    best = made.state.best.row["iteration"]
    assert best == objectives.index(max(objectives)) < 2, "far from the reference, it is not best"


def test_the_best_is_judged_by_what_is_trained(loop):
    """After clipping and the penalty for a missing end, not by the raw score."""
    made = loop("ppo.kl_coef=0.0", "ppo.reward_clip=1.0", "ppo.missing_eos_penalty=5.0", "ppo.response_length=40")
    made.change(reward=scores_in_turn(0.9, 50.0))
    first = made.evaluate(0)
    assert first["eval_finished"] == 1.0
    made.parts.held_out.uniforms = made.parts.held_out.uniforms[:, :2]  # now no response comes to its end
    second = made.evaluate(1)
    assert second["eval_finished"] == 0.0
    assert (first["eval_objective"], second["eval_objective"]) == (pytest.approx(0.9), pytest.approx(1.0 - 5.0))
    assert made.state.best.row["iteration"] == 0


def test_the_best_and_its_rival_are_judged_by_the_same_normalisation(loop):
    """Scores that were high when scores varied little are not best for ever."""
    made = loop("ppo.kl_coef=0.0", "ppo.normalize_reward=true", reward=scores_in_turn(1.0, 2.0))
    made.state.moments.update(torch.tensor([0.0, 0.2]))
    first = made.evaluate(0)
    made.state.moments.update(torch.tensor([-50.0, 50.0]))
    second = made.evaluate(1)
    assert second["eval_objective"] < first["eval_objective"], "on another scale"
    assert made.state.best.row["iteration"] == 1, "but better"


def test_evaluation_is_on_held_out_prompts_with_samples(loop):
    seen = []
    made = loop(reward=lambda rollout, prompts, trunk: seen.append(prompts) or length_score(rollout, prompts))
    metrics = made.evaluate()
    held_out = made.parts.held_out.prompts
    assert seen == [held_out]
    rows = read_jsonl(made.folder / "samples.jsonl")
    assert [row["prompt"] for row in rows] == [example.prompt for example in held_out]
    assert len(rows) == made.config.eval_prompts == 4
    trained_on = {str(example.prompt) for example in made.parts.prompts.examples}
    assert not trained_on & {str(row["prompt"]) for row in rows}
    assert metrics["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["eval_reward"] == pytest.approx(sum(row["reward"] for row in rows) / 4)
    assert all(row["response"] for row in rows)


def test_a_process_without_a_prompt_judges_by_the_responses_of_the_others(loop, monkeypatch):
    made, processes = loop("ppo.eval_prompts=1"), ProcessGroup(torch.device("cpu"))
    held_out, found = made.parts.held_out, []
    monkeypatch.setattr(processes, "gather", lambda rows: found.append(rows) or list(rows))
    expected = held_out.evaluate(made.state, processes)
    (response,) = found[-1]
    monkeypatch.setattr(processes, "share", Share(0, 2))  # the second has the one prompt
    monkeypatch.setattr(processes, "gather", lambda rows: [*rows, response] if rows == [] else list(rows))
    assert held_out.evaluate(made.state, processes) == expected
    assert expected[1] * 2 == read_jsonl(made.folder / "samples.jsonl")


def test_evaluation_repeats_itself_and_disturbs_nothing(loop):
    made = loop()
    state = torch.get_rng_state()
    assert made.evaluate() == made.evaluate()
    assert torch.equal(torch.get_rng_state(), state)


# Order of prompts


@pytest.mark.parametrize(("n_prompts", "count"), [(10, 4), (3, 8), (5, 5)])
def test_prompts_come_in_shuffled_epochs(n_prompts, count):
    stream = [row for i in range(n_prompts) for row in prompt_rows(n_prompts, count, i, seed=7)]
    epochs = [stream[i : i + n_prompts] for i in range(0, len(stream), n_prompts)]
    assert all(sorted(epoch) == list(range(n_prompts)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert stream != [row for i in range(n_prompts) for row in prompt_rows(n_prompts, count, i, seed=8)]


def test_each_prompt_comes_as_often_as_it_is_answered():
    stream = PromptStream("abcdefgh", batch_size=12, num_generations=4, seed=0)
    batch = stream.batch(1, range(12))
    expected = ["abcdefgh"[row] for row in prompt_rows(8, 3, 1, seed=0)]
    assert batch == [prompt for prompt in expected for _ in range(4)]
    assert stream.batch(1, range(4, 8)) == [expected[1]] * 4


@pytest.mark.parametrize(("rows", "group", "processes"), [(12, 4, 2), (12, 4, 3), (8, 1, 3), (64, 4, 5)])
def test_shares_are_whole_groups_in_order(rows, group, processes):
    shares = [Share(i, processes).of(rows, group) for i in range(processes)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert all(len(share) % group == 0 and len(share) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= group


def test_more_processes_than_prompts_is_an_error():
    with pytest.raises(UserError, match=r"ppo\.batch_size: 2 prompts are too few for 3 processes; raise it"):
        Share(0, 3).check(2, "ppo.batch_size")


def test_due():
    due = {(i, every) for i, every in product(range(1, 8), (0, 1, 3)) if is_due(i, every, is_last=i == 7)}
    assert due == {(i, 1) for i in range(1, 8)} | {(3, 3), (6, 3), (7, 3)}

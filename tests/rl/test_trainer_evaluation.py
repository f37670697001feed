"""Held-out evaluation, and the order in which prompts and minibatches come."""

from itertools import product

import pytest
import torch
from demo_runs import equal, read_jsonl, weights
from trainers import length_score, randomise

from lorarlhf.rl.schedule import is_due, prompt_rows

# Evaluation


def test_the_best_evaluation_is_kept(make_trainer):
    scores = iter([1.0, 3.0, 2.0, 3.0])
    trainer = make_trainer(
        "ppo.kl_coef=0.0", score=lambda rollout, batch, trunk: torch.full((len(batch),), next(scores))
    )
    kept = []
    for iteration in range(4):
        trainer.iteration = iteration
        trainer.evaluate()
        kept.append(weights(trainer.backbone, "policy"))
        randomise(trainer.backbone, 0.01, "policy")
    assert trainer.best["iteration"] == 1, "the first of equals"
    trainer.backbone.load_role("policy", trainer.folder / "best")
    assert equal(weights(trainer.backbone, "policy"), kept[1])
    assert [row["eval_reward"] for row in trainer.evaluations] == [1.0, 3.0, 2.0, 3.0]


def test_the_best_is_so_by_reward_less_kl(make_trainer):
    scores = iter([1.0, 2.0, 3.0])
    trainer = make_trainer(
        "ppo.kl_coef=100.0", score=lambda rollout, batch, trunk: torch.full((len(batch),), next(scores))
    )
    for iteration in range(3):
        trainer.iteration = iteration
        trainer.evaluate()
        randomise(trainer.backbone, 0.1, "policy")
    objectives = [row["eval_reward"] - 100 * row["eval_kl"] for row in trainer.evaluations]
    assert [row["eval_objective"] for row in trainer.evaluations] == pytest.approx(objectives)
    assert trainer.best["iteration"] == objectives.index(max(objectives)) < 2, "far from the reference, it is not best"


def test_evaluation_is_on_held_out_prompts_with_samples(make_trainer):
    trainer = make_trainer(score=lambda rollout, batch, trunk: seen.append(batch) or length_score(rollout, batch))
    seen = []
    metrics = trainer.evaluate()
    assert seen == [trainer.eval_prompts]
    rows = read_jsonl(trainer.folder / "samples.jsonl")
    assert [row["prompt"] for row in rows] == [example.prompt for example in trainer.eval_prompts]
    assert len(rows) == trainer.config.eval_prompts == 4
    trained_on = {str(example.prompt) for example in trainer.prompts}
    assert not trained_on & {str(row["prompt"]) for row in rows}
    assert metrics["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["eval_reward"] == pytest.approx(sum(row["reward"] for row in rows) / 4)
    assert all(row["response"] for row in rows)


def test_evaluation_repeats_itself_and_disturbs_nothing(make_trainer):
    trainer = make_trainer()
    state = torch.get_rng_state()
    assert trainer.evaluate() == trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)


# Order of prompts and minibatches


def test_each_epoch_of_an_iteration_sees_every_row_once_in_its_own_order(make_trainer, monkeypatch):
    trainer = make_trainer("ppo.num_ppo_epochs=2", "ppo.num_mini_batches=4")

    class Rows:
        def select(self, rows):
            return rows.tolist()

    monkeypatch.setattr(trainer, "make_experience", Rows)
    steps = []
    for step in trainer.minibatches():
        steps.append(step)
        trainer.iteration += step["last"]
    assert [step["last"] for step in steps] == 2 * ([False] * 7 + [True])
    epochs = [[row for step in steps[i : i + 4] for row in step["experience"]] for i in range(0, 16, 4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(("n_prompts", "batch_size"), [(10, 4), (3, 8), (5, 5)])
def test_prompts_come_in_shuffled_epochs(n_prompts, batch_size):
    stream = [row for i in range(n_prompts) for row in prompt_rows(n_prompts, batch_size, i, seed=7)]
    epochs = [stream[i : i + n_prompts] for i in range(0, len(stream), n_prompts)]
    assert all(sorted(epoch) == list(range(n_prompts)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert stream != [row for i in range(n_prompts) for row in prompt_rows(n_prompts, batch_size, i, seed=8)]


def test_due():
    due = {(i, every) for i, every in product(range(1, 8), (0, 1, 3)) if is_due(i, every, is_last=i == 7)}
    assert due == {(i, 1) for i in range(1, 8)} | {(3, 3), (6, 3), (7, 3)}

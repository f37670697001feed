"""The loop: sample, score, advantages, update, and what comes between iterations."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.finite import NotFinite, check_role, refusal
from lorarlhf.errors import Stopped
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import ResponseSampler
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.algorithms import Algorithm
from lorarlhf.rl.checkpoint import save_checkpoint
from lorarlhf.rl.held_out import HeldOut
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.prompts import PromptStream, is_due
from lorarlhf.rl.score import RolloutScorer, ScoringPasses, not_finite, score
from lorarlhf.rl.state import TrainingState
from lorarlhf.rl.statistics import Clock, iteration_row, rollout_statistics
from lorarlhf.rl.update import update
from lorarlhf.signals import stop_request


@dataclass(frozen=True)
class Setup:
    """What a run of the loop is made of, none of which changes.

    Attributes:
        prompts: to train on.
        reward: raw score of each response.
        held_out: what evaluates; None where nothing is held out.
        update_budget: tokens of a micro-batch.
        log: takes each row of numbers.
        show: told what is being done.
        folder: the stage's.
    """

    prompts: PromptStream
    sampler: ResponseSampler
    passes: ScoringPasses
    reward: RolloutScorer
    held_out: HeldOut | None
    update_budget: TokenBudget
    log: Callable[[dict[str, Any]], None]
    show: Callable[[str], None]
    folder: Path
    seed: int


def train(setup: Setup, algorithm: Algorithm, config: PPOConfig, state: TrainingState, learner: Learner) -> None:
    """On-policy policy gradient with clipped updates (Schulman et al. 2017, algorithm 1), to the end.

    `state` says where to go on from, and is kept up to date.

    Raises:
        Stopped: by a signal, between two iterations; the checkpoint is written.
        UserError: NaN or infinity came up; neither it nor what came of it is in any checkpoint.
    """
    with stop_request() as request, _told(setup, state, learner):
        while not state.is_over(config):
            row = _iteration(setup, algorithm, config, state, learner)
            setup.log({"iteration": state.iteration, "step": state.step, **row})
            if setup.held_out is not None and is_due(state.iteration, config.eval_every, state.is_over(config)):
                evaluate(setup, state, learner)
            stopping = learner.any(request.signal is not None) and not state.is_over(config)
            due = is_due(state.iteration, config.save_every, state.is_over(config))  # which the evaluation may decide
            if due or stopping or state.is_over(config):
                check_learnt(setup, learner)
            if due or stopping:
                save_checkpoint(setup.folder, state, learner, config.save_total_limit)
            if stopping:
                number = request.signal or signal.SIGTERM  # another process has had it first
                saved = f"{setup.folder.name}/checkpoint-{state.iteration}"
                raise Stopped(f"stopped by {number.name} after iteration {state.iteration}, with {saved}", number)


def _iteration(
    setup: Setup, algorithm: Algorithm, config: PPOConfig, state: TrainingState, learner: Learner
) -> dict[str, float]:
    """Sample, score, learn; returns the row to log. What it has held, up to 0.4 GiB of a 7B run, goes when it ends."""
    rows = learner.share.of(config.batch_size, config.generations)  # this process's responses
    clock = Clock(learner.backbone.device, setup.show)
    prompts = setup.prompts.batch(state.iteration, rows)
    uniforms = uniform_table(config.batch_size, config.response_length, "rollout", setup.seed, state.iteration)

    with learner.heard_by_all():
        with clock.phase("rollout"):  # 1. responses of the policy as it is now
            rollout = setup.sampler.sample([example.ids for example in prompts], uniforms[rows.start : rows.stop])
        with clock.phase("score"):  # 2. reward, reference, values
            again = config.recompute_logprobs
            again = not learner.backbone.is_exact if again == "auto" else again
            scored = score(setup.passes, rollout, prompts, setup.reward, algorithm.has_critic, again)
    fault = not_finite(scored)
    if learner.any(fault is not None):
        if config.on_nan == "stop":
            raise fault or NotFinite("numbers", "rollout in another process")
        state.skip_iteration()
        learner.schedule()
        return {"skipped": state.skipped}

    stats, scores = rollout_statistics(scored, learner)  # of all processes
    if config.normalize_reward:
        state.moments.update(scores)
    shaped = state.shaped(config, scored.scores, rollout.finished)
    experience = algorithm.experience(scored, shaped, state.kl_coef)  # 3. advantages

    with clock.phase("update"):  # 4. clipped updates of the policy (and critic)
        updated = update(
            learner, algorithm, experience, rows, state.iteration, state.kl_coef, setup.update_budget, setup.seed
        )
    row = iteration_row(stats, updated, state, learner, clock, config)
    state.end_iteration(config, stats, updated.steps, updated.skipped)
    learner.schedule()
    return {**row, "skipped": state.skipped} if state.skipped else row


def evaluate(setup: Setup, state: TrainingState, learner: Learner) -> None:
    """Log how the policy does on the held-out prompts. Raises UserError at NaN or infinity."""
    assert setup.held_out is not None
    setup.show("evaluation")
    with _told(setup, state, learner):
        row = setup.held_out.evaluate(state, learner)
    setup.log({"step": state.step, **row})


def check_learnt(setup: Setup, learner: Learner) -> None:
    """Raise NotFinite if a role that learns has weights of which nothing finite can be computed."""
    ids = [*setup.prompts.examples[0].ids, learner.backbone.end_id]
    for role in learner.parameters:
        check_role(learner.backbone, role, ids)


@contextlib.contextmanager
def _told(setup: Setup, state: TrainingState, learner: Learner) -> Iterator[None]:
    """NaN or infinity inside the block becomes a line for the user, and a file with the texts."""
    try:
        yield
    except NotFinite as fault:
        when = f"after iteration {state.iteration}"
        raise refusal(fault, learner.backbone.tokenizer, setup.folder, when) from fault

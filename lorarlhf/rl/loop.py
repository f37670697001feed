"""The loop: sample, score, advantages, update, and what comes between iterations."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from lorarlhf.stopwatch import Stopwatch


class Log(Protocol):
    """What is given each row of numbers, and the samples with that of an evaluation."""

    def __call__(self, row: dict[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None: ...


@dataclass(frozen=True)
class LoopParts:
    """What a run of the loop is made of, none of which changes.

    Attributes:
        prompts: to train on.
        reward: raw score of each response.
        held_out: what evaluates; None where nothing is held out.
        update_budget: tokens of a micro-batch.
        log: where the numbers go.
        show: told what is being done.
        folder: the stage's.
        stopwatch: likewise; checkpoints keep it.
    """

    prompts: PromptStream
    sampler: ResponseSampler
    passes: ScoringPasses
    reward: RolloutScorer
    held_out: HeldOut | None
    update_budget: TokenBudget
    log: Log
    show: Callable[[str], None]
    folder: Path
    seed: int
    stopwatch: Stopwatch


def train(parts: LoopParts, algorithm: Algorithm, config: PPOConfig, state: TrainingState, learner: Learner) -> None:
    """On-policy policy gradient with clipped updates (Schulman et al. 2017, algorithm 1), to the end.

    `state` says where to go on from, and is kept up to date.

    Raises:
        Stopped: by a signal, between two iterations; the checkpoint is written.
        UserError: NaN or infinity came up; neither it nor what came of it is in any checkpoint.
    """
    with stop_request() as request, _refusing_not_finite(parts, state, learner):
        while not state.is_over(config):
            row = _iteration(parts, algorithm, config, state, learner)
            parts.log({"iteration": state.iteration, "step": state.step, **row})
            if parts.held_out is not None and is_due(state.iteration, config.eval_every, state.is_over(config)):
                evaluate(parts, state, learner)
            over = state.is_over(config)  # which the evaluation may have decided
            stopping = learner.processes.any(request.signal is not None) and not over
            saving = stopping or is_due(state.iteration, config.save_every, over)
            if saving or over:
                check_learnt(parts, learner)
            if saving:
                save_checkpoint(parts.folder, state, learner, config.save_total_limit, parts.stopwatch)
            if stopping:
                number = request.signal or signal.SIGTERM  # another process has had it first
                saved = f"{parts.folder.name}/checkpoint-{state.iteration}"
                raise Stopped(f"stopped by {number.name} after iteration {state.iteration}, with {saved}", number)


def _iteration(
    parts: LoopParts, algorithm: Algorithm, config: PPOConfig, state: TrainingState, learner: Learner
) -> dict[str, float]:
    """Sample, score, learn; returns the row to log. What it has held, up to 0.4 GiB of a 7B run, goes when it ends."""
    rows = learner.processes.share.of(config.batch_size, config.generations)  # this process's responses
    clock = Clock(learner.backbone.device, parts.show)
    prompts = parts.prompts.batch(state.iteration, rows)
    uniforms = uniform_table(config.batch_size, config.response_length, "rollout", parts.seed, state.iteration)

    with learner.processes.failing_together():
        with clock.phase("rollout"):  # 1. responses of the policy as it is now
            rollout = parts.sampler.sample([example.ids for example in prompts], uniforms[rows.start : rows.stop])
        with clock.phase("score"):  # 2. reward, reference, values
            recompute = config.recompute_logprobs
            if recompute == "auto":
                recompute = not learner.backbone.is_exact
            scored = score(parts.passes, rollout, prompts, parts.reward, algorithm.has_critic, recompute)
    fault = not_finite(scored)
    if learner.processes.any(fault is not None):
        if config.on_nan == "stop":
            raise fault or NotFinite("numbers", "rollout in another process")
        state.skip_iteration()
        learner.schedule()
        return {"skipped": state.skipped}

    stats, scores = rollout_statistics(scored, config.generations, learner.processes)  # of all processes
    if config.normalize_reward:
        state.moments.update(scores)
    shaped = state.shaped(config, scored.scores, rollout.finished)
    experience = algorithm.experience(scored, shaped, state.kl_coef)  # 3. advantages

    with clock.phase("update"):  # 4. clipped updates of the policy (and critic)
        updated = update(
            learner, algorithm, experience, rows, state.iteration, state.kl_coef, parts.update_budget, parts.seed
        )
    row = iteration_row(stats, updated, state, learner.learning_rate, clock, config)
    state.end_iteration(config, stats, updated.steps, updated.skipped)
    learner.schedule()
    return {**row, "skipped": state.skipped} if state.skipped else row


def evaluate(parts: LoopParts, state: TrainingState, learner: Learner) -> None:
    """Log how the policy does on the held-out prompts. Raises UserError at NaN or infinity."""
    assert parts.held_out is not None
    parts.show("evaluation")
    with _refusing_not_finite(parts, state, learner):
        row, samples = parts.held_out.evaluate(state, learner.processes)
    parts.log({"step": state.step, **row}, samples)


def check_learnt(parts: LoopParts, learner: Learner) -> None:
    """Raise NotFinite if a role that learns has weights of which nothing finite can be computed."""
    ids = [*parts.prompts.examples[0].ids, learner.backbone.end_id]
    for role in learner.parameters:
        check_role(learner.backbone, role, ids)


@contextlib.contextmanager
def _refusing_not_finite(parts: LoopParts, state: TrainingState, learner: Learner) -> Iterator[None]:
    """NaN or infinity inside the block becomes a line for the user, and a file with the texts."""
    try:
        yield
    except NotFinite as fault:
        when = f"after iteration {state.iteration}"
        raise refusal(fault, learner.backbone.tokenizer, parts.folder, when) from fault

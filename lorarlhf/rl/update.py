"""The update: all epochs over one iteration's experience, minibatch by minibatch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.finite import NotFinite
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.algorithms import Algorithm
from lorarlhf.rl.experience import Experience
from lorarlhf.rl.learner import Learner


@dataclass
class UpdateStats:
    """What an update reports.

    Attributes:
        means: of each statistic over the minibatches, each a mean a token.
        steps: of the optimiser.
        skipped: steps that were not taken, as their gradients had NaN or infinity (`ppo.on_nan`).
        gap: in the first minibatch, where the policy still is the one that sampled: how far its log-probabilities are
            from those of the experience, in any process.
    """

    means: dict[str, float]
    steps: int
    gap: float
    skipped: int = 0


def update(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    rows: range,
    iteration: int,
    kl_coef: float,
    budget: TokenBudget,
    seed: int,
) -> UpdateStats:
    """Several epochs of minibatch steps on the same experience (Schulman et al. 2017, algorithm 1).

    Args:
        experience: of this process's `rows` of the batch.
        budget: tokens of a micro-batch.
        seed: with the iteration, of the order of rows.

    Raises:
        NotFinite: gradients have NaN or infinity, and they are not to be passed over.
    """
    config, roles = algorithm.config, algorithm.roles(iteration)
    learner.backbone.train()
    history: dict[str, list[float]] = defaultdict(list)
    first_gap, steps, skipped = 0.0, 0, 0
    for chosen in minibatches(config, seed + iteration):
        minibatch = experience.select(rows_here(chosen, rows, experience.mask.device))
        # A loss is a mean over the tokens of the whole minibatch, in all processes: then micro-batches of any size and
        # any number of processes add up to the same gradient.
        tokens = learner.processes.sum(minibatch.mask.sum()).clamp(min=1)
        with learner.processes.failing_together():
            sums, gap = minibatch_gradients(learner, algorithm, minibatch, tokens, roles, kl_coef, budget)
        try:
            norms = learner.step(roles)
        except NotFinite as fault:
            if config.on_nan == "stop":
                raise NotFinite(fault.what, fault.role, minibatch.sequences.lists()) from None
            skipped += 1
            continue
        totals = learner.processes.sum_named(sums)
        padding = totals.pop("padding_tokens") / totals.pop("computed_tokens")
        means = {"padding": padding, **{name: total / tokens.item() for name, total in totals.items()}}
        for name, value in (means | {_norm_name(role): norm for role, norm in norms.items()}).items():
            history[name].append(value)
        if steps == 0:  # of all processes: one may have no response of this minibatch
            first_gap = max(learner.processes.gather([gap]))
        steps += 1
        if config.early_stop_kl is not None and means.get("approx_kl", 0.0) > config.early_stop_kl:
            break  # the policy has gone as far from the one that sampled as it may in an iteration
    means = {name: sum(values) / len(values) for name, values in history.items()}
    return UpdateStats(means, steps, first_gap, skipped)


def minibatch_gradients(
    learner: Learner,
    algorithm: Algorithm,
    minibatch: Experience,
    tokens: Tensor,
    roles: tuple[str, ...],
    kl_coef: float,
    budget: TokenBudget,
) -> tuple[dict[str, Tensor], float]:
    """Put the gradients of a minibatch's losses into the parameters, micro-batch by micro-batch.

    Args:
        tokens: of the whole minibatch in all processes.

    Returns:
        sums over this process's tokens of the losses and statistics, with how many tokens were computed and of these no
        sequence's; and the greatest `LossTerm.gap`.
    """

    def attempt(tokens_at_a_time: int) -> tuple[dict[str, Tensor], float]:
        learner.discard_gradients()  # of an attempt that ran out of memory
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=tokens.device))
        gap = 0.0
        for rows in minibatch.sequences.micro_batches(tokens_at_a_time):
            part = minibatch.select(rows)
            sums["padding_tokens"] += part.sequences.padding_tokens
            sums["computed_tokens"] += part.sequences.computed_tokens
            # Policy and critic go backward one after the other, so only one role's activations are alive.
            for term in algorithm.losses(learner.backbone, part, kl_coef, roles):
                learner.backward(term.loss / tokens)
                for name, value in {"loss": term.loss, **term.sums}.items():
                    sums[name] += value.detach()
                gap = max(gap, term.gap)
        return sums, gap

    sequences = minibatch.sequences
    if not len(sequences):  # all of this minibatch's responses are other processes'
        learner.discard_gradients()
        return {}, 0.0
    return budget.run(attempt, most=sequences.computed_tokens, least=int(sequences.lengths.max()))


def minibatches(config: PPOConfig, seed: int) -> Iterator[list[int]]:
    """Rows of the whole batch for each step: every epoch sees each row once, in an order of its own.

    Responses to one prompt stay beside each other: they are computed behind one prompt, and what is common to their
    gradients cancels within a step, as their advantages do.
    """
    order = torch.Generator().manual_seed(seed)
    group = torch.arange(config.generations)
    for _ in range(config.num_ppo_epochs):
        prompts = torch.randperm(config.batch_size // len(group), generator=order)
        rows = (prompts.unsqueeze(1) * len(group) + group).flatten()
        for part in rows.chunk(config.num_mini_batches):
            yield part.tolist()


def rows_here(chosen: list[int], rows: range, device: torch.device) -> Tensor:
    """Which rows of this process's experience are among those chosen from the whole batch."""
    return torch.tensor([row - rows.start for row in chosen if row in rows], dtype=torch.long, device=device)


def _norm_name(role: str) -> str:
    return "grad_norm" if role == "policy" else f"{role}_grad_norm"

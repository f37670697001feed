"""What is measured of an iteration."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch

from lorarlhf.memory import peak_memory_bytes
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.experience import ScoredRollout
from lorarlhf.rl.kl import kl_estimate
from lorarlhf.rl.process_group import ProcessGroup
from lorarlhf.rl.state import TrainingState
from lorarlhf.rl.update import UpdateStats

NGRAM = 4  # tokens


class Clock:
    """Seconds of each phase of an iteration.

    Args:
        show: told the name of each phase as it begins.
    """

    def __init__(self, device: torch.device, show: Callable[[str], None]) -> None:
        self.device = device
        self.show = show
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block; a GPU is waited for, as it works on after its calls return."""
        self.show(name)
        start = time.perf_counter()
        yield
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start


def repetition(tokens: Sequence[int]) -> float:
    """Share of a text's runs of four tokens that it has had before (Welleck et al. 2020, seq-rep-4); 0 if too short."""
    runs = list(zip(*(tokens[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def first_of_their_kind(responses: Sequence[Sequence[int]], group: int) -> list[bool]:
    """Of each response, whether none before it in its group of `group` is the same."""
    earlier: list[set[tuple[int, ...]]] = [set() for _ in range(0, len(responses), group)]
    first = []
    for row, response in enumerate(map(tuple, responses)):
        first.append(response not in earlier[row // group])
        earlier[row // group].add(response)
    return first


def rollout_statistics(
    scored: ScoredRollout, group: int, processes: ProcessGroup
) -> tuple[dict[str, float], torch.Tensor]:
    """Means over all processes' responses (or their tokens), `group` to a prompt, and [B] the raw scores of all."""
    mask, rollout = scored.mask, scored.rollout
    kl = kl_estimate(scored.logprobs, scored.ref_logprobs, "k1")
    gap = (scored.logprobs - rollout.logprobs).abs()
    responses = rollout.sequences.responses()
    columns = {
        "score": scored.scores,
        "length": rollout.sequences.response_lengths,
        "finished": rollout.finished,
        "kl": torch.where(mask, kl, 0.0).sum(1),
        "entropy": torch.where(mask, scored.entropy, 0.0).sum(1),
        "gap": gap.amax(1) if mask.shape[1] else gap.sum(1),
        "repetition": torch.tensor([repetition(response) for response in responses]),
    }
    if group > 1:
        columns["distinct"] = torch.tensor(first_of_their_kind(responses, group))
    if scored.values is not None:
        columns["value"] = torch.where(mask, scored.values, 0.0).sum(1)
    each = processes.gather_columns(columns)
    scores, tokens = each["score"], each["length"].sum().clamp(min=1)
    stats = {
        "reward": scores.mean().item(),
        "reward_std": scores.std(correction=0).item(),
        "kl": each["kl"].mean().item(),
        "entropy": (each["entropy"].sum() / tokens).item(),
        "response_length": each["length"].float().mean().item(),
        "finished": each["finished"].float().mean().item(),
        "rollout_gap": each["gap"].max().item(),
        "repetition": each["repetition"].mean().item(),
    }
    if "distinct" in each:
        stats["distinct"] = each["distinct"].float().mean().item()
    if "value" in each:
        stats["value"] = (each["value"].sum() / tokens).item()
    return stats, scores


def iteration_row(
    stats: dict[str, float],
    updated: UpdateStats,
    state: TrainingState,
    learning_rate: float,
    clock: Clock,
    config: PPOConfig,
) -> dict[str, float]:
    """What `metrics.jsonl` says of an iteration."""
    seconds = sum(clock.seconds.values())
    return {
        **stats,
        "rollout_gap": max(stats["rollout_gap"], updated.gap),
        "kl_coef": state.kl_coef,
        **updated.means,
        "learning_rate": learning_rate,
        **{f"seconds_{phase}": value for phase, value in clock.seconds.items()},
        "tokens_per_second": stats["response_length"] * config.batch_size / seconds,
        "peak_memory_gb": peak_memory_bytes() / 1e9,
    }

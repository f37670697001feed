"""Sample pairs of different responses to compare, from one policy or from two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from lorarlhf.backbone import SharedBackbone
from lorarlhf.config import Role
from lorarlhf.data.rows import Completion, Prompt
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.errors import UserError
from lorarlhf.ppo.rollout import response_texts, sample_responses

PROMPTS_A_BATCH = 32
TOKEN_BUDGET = 16_384


@dataclass(frozen=True)
class Sampler:
    """What a response is drawn from: roles of a backbone, with the names that the pairs file gives them."""

    backbone: SharedBackbone
    roles: Sequence[Role]
    names: Sequence[str]
    n: int
    response_length: int
    temperature: float
    seed: int


def write_pairs(sampler: Sampler, prompts: Sequence[PromptExample], out: Path, rank: bool, progress: Progress) -> int:
    """Append pairs of different responses to `out`, a batch of prompts at a time; return how many pairs it holds.

    Batches that an interrupted run has finished are known by `out` and not sampled again. With one role, the pairs of
    a prompt are those of its `n` responses; with two, each response of one meets each of the other.

    Args:
        rank: score the pairs with the reward role, and in the end put those nearest to 0.5 first.
    """
    done = {row["batch"] for row in read_rows(out)}
    batches = [prompts[i : i + PROMPTS_A_BATCH] for i in range(0, len(prompts), PROMPTS_A_BATCH)]
    task = progress.add_task("prompts", total=len(prompts))
    for number, batch in enumerate(batches):
        if number not in done:
            rows = _pairs(sampler, batch, number, rank)
            with out.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        progress.update(task, advance=len(batch))
    rows = read_rows(out)
    if rank:
        rows.sort(key=lambda row: abs(row["predicted"] - 0.5))
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a pairs file that this module wrote; none if there is no file. A batch torn at the end is an error."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            row["batch"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}:{number}: not a line of `lorarlhf sample`; remove it or give another --out"
            ) from None
        rows.append(row)
    return rows


@torch.no_grad()
def _pairs(sampler: Sampler, batch: Sequence[PromptExample], number: int, rank: bool) -> list[dict[str, Any]]:
    drawn = [_responses(sampler, batch, k, number) for k in range(len(sampler.roles))]
    rows = []
    for i, example in enumerate(batch):
        if len(drawn) == 1:
            candidates = [(a, b, 0, 0) for a, b in combinations(dict.fromkeys(drawn[0][i]), 2)]
        else:
            candidates = [
                (a, b, 0, 1) for a in dict.fromkeys(drawn[0][i]) for b in dict.fromkeys(drawn[1][i]) if a != b
            ]
        for a, b, of_a, of_b in candidates:
            row: dict[str, Any] = {
                "prompt": example.prompt,
                "response_a": _completion(example.prompt, a[0]),
                "response_b": _completion(example.prompt, b[0]),
                "source": f"{sampler.names[of_a]} / {sampler.names[of_b]}",
                "batch": number,
            }
            if rank:
                row["predicted"] = torch.sigmoid(torch.tensor(a[1] - b[1])).item()
            rows.append(row)
    return rows


def _responses(sampler: Sampler, batch: Sequence[PromptExample], k: int, number: int) -> list[list[tuple[str, float]]]:
    """`n` responses of one role to each prompt, each with its score by the reward role (0 without one)."""
    backbone = sampler.backbone
    backbone.eval()
    generator = torch.Generator(backbone.device).manual_seed((sampler.seed * 1009 + k) * 1_000_003 + number)
    ids = [example.ids for example in batch for _ in range(sampler.n)]
    rollout = sample_responses(
        backbone, ids, sampler.response_length, sampler.temperature, generator, sampler.roles[k], TOKEN_BUDGET
    )
    scores = torch.zeros(len(ids))
    if "reward" in backbone.roles:
        for rows in rollout.sequences.micro_batches(TOKEN_BUDGET):
            scores[rows.cpu()] = backbone.scores(rollout.sequences.select(rows)).cpu()
    each = list(zip(response_texts(backbone, rollout), scores.tolist(), strict=True))
    kept = [[pair for pair in each[i * sampler.n : (i + 1) * sampler.n] if pair[0].strip()] for i in range(len(batch))]
    return [list({text: (text, score) for text, score in pairs}.values()) for pairs in kept]


def _completion(prompt: Prompt, text: str) -> Completion:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]

"""Sample pairs of different responses to compare, from one policy or from two."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from lorarlhf.backbone.batch import with_end
from lorarlhf.backbone.budget import TokenBudget, in_micro_batches, tokens_a_pass
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.rows import Completion, Prompt
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.errors import UserError
from lorarlhf.files import write_file
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import ResponseSampler, response_texts

PROMPTS_A_BATCH = 32
DECODED_TOKENS = 16_384  # at a time, padded: their keys and values are kept

ADAPTER_WEIGHTS = "adapter weights"  # an option: hashes of what sampled and scored

_BEGINNING = '{"prompt": '


@dataclass(frozen=True)
class Sampler:
    """What a response is drawn from: roles of a backbone, with the names that the pairs file gives them.

    Attributes:
        options: what the command was told, kept in each row: a file is only gone on with by the same.
    """

    backbone: SharedBackbone
    roles: Sequence[str]
    names: Sequence[str]
    n: int
    response_length: int
    temperature: float
    seed: int
    options: Mapping[str, Any]

    @functools.cached_property
    def responses(self) -> ResponseSampler:
        """Kept from batch to batch: it remembers how many responses fit at a time."""
        return ResponseSampler(self.backbone, self.response_length, self.temperature, "sample", DECODED_TOKENS)

    @functools.cached_property
    def scoring_budget(self) -> TokenBudget:
        """Kept likewise."""
        return TokenBudget("scoring", tokens_a_pass(self.backbone.device))


def write_pairs(sampler: Sampler, prompts: Sequence[PromptExample], out: Path, rank: bool, progress: Progress) -> int:
    """Append pairs of different responses to `out`, a batch of prompts at a time; return how many pairs it holds.

    Batches that an interrupted run has finished are known by `out` and not sampled again. With one role, the pairs of
    a prompt are those of its `n` responses; with two, each response of one meets each of the other.

    Args:
        rank: score the pairs with the reward role, and in the end put those nearest to 0.5 first.

    Raises:
        UserError: `out` holds something else, or pairs sampled with other options.
    """
    pairs = write_batches(out, sampler.options, prompts, partial(_pairs, sampler, rank), progress)
    if rank:
        write_file(out, _lines(sorted(pairs, key=lambda row: abs(row["predicted"] - 0.5))))
    return len(pairs)


def write_batches(
    out: Path,
    options: Mapping[str, Any],
    prompts: Sequence[PromptExample],
    rows_of: Callable[[Sequence[PromptExample], int], list[dict[str, Any]]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Append the rows of a batch of prompts at a time to `out`; return all it holds, those of earlier calls too.

    Args:
        rows_of: the rows of a batch, given its number.

    Raises:
        UserError: `out` holds something else, or rows sampled with other options.
    """
    rows = finished_rows(out, options)
    done = {row["batch"] for row in rows}
    write_file(out, _lines(rows))  # without what was cut short
    batches = [prompts[i : i + PROMPTS_A_BATCH] for i in range(0, len(prompts), PROMPTS_A_BATCH)]
    task = progress.add_task("prompts", total=len(prompts))
    for number, batch in enumerate(batches):
        if number not in done:
            fresh = [{**row, "batch": number, "options": options} for row in rows_of(batch, number)]
            with out.open("a", encoding="utf-8") as file:
                file.write(_lines(fresh))
            rows += fresh
        progress.update(task, advance=len(batch))
    return rows


def finished_rows(path: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a file that this module wrote with these options; none if there is no file.

    A last line that was cut short is left out with all of its batch. Raises UserError for any other line.
    """
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    *lines, last = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["batch"], row["options"]["seed"]
        except (ValueError, KeyError, TypeError):
            raise _foreign(path, number) from None
        _check_options(path, row, options)
        rows.append(row)
    if not last:
        return rows
    if not last.startswith(_BEGINNING[: len(last)]):  # someone's text, not ours to cut off
        raise _foreign(path, len(lines) + 1)
    return [row for row in rows if row["batch"] != rows[-1]["batch"]]


def _check_options(path: Path, row: dict[str, Any], options: Mapping[str, Any]) -> None:
    before = {ADAPTER_WEIGHTS: options.get(ADAPTER_WEIGHTS), **row["options"]}  # an earlier lorarlhf did not say
    changed = [f"{key} {before.get(key)} (now {now})" for key, now in options.items() if before.get(key) != now]
    if changed:
        raise UserError(f"{path}: was sampled with {', '.join(changed)}; give the same options, or another --out")


def _foreign(path: Path, line: int) -> UserError:
    return UserError(f"{path}:{line}: not a line of `lorarlhf sample`; remove it or give another --out")


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _pairs(sampler: Sampler, rank: bool, batch: Sequence[PromptExample], number: int) -> list[dict[str, Any]]:
    drawn = [_different(scored_responses(sampler, batch, k, number)) for k in range(len(sampler.roles))]
    rows = []
    for i, example in enumerate(batch):
        if len(drawn) == 1:
            candidates = [(a, b, 0, 0) for a, b in combinations(drawn[0][i], 2)]
        else:
            candidates = [(a, b, 0, 1) for a in drawn[0][i] for b in drawn[1][i] if a[0] != b[0]]
        for a, b, of_a, of_b in candidates:
            row: dict[str, Any] = {
                "prompt": example.prompt,
                "response_a": as_completion(example.prompt, a[0]),
                "response_b": as_completion(example.prompt, b[0]),
                "source": f"{sampler.names[of_a]} / {sampler.names[of_b]}",
            }
            if rank:
                row["predicted"] = torch.sigmoid(torch.tensor(a[1] - b[1])).item()
            rows.append(row)
    return rows


def _different(responses: Sequence[Sequence[tuple[str, float]]]) -> list[list[tuple[str, float]]]:
    """Of each prompt those that are not empty, each once, with its last score."""
    return [list({text: (text, score) for text, score in some if text.strip()}.values()) for some in responses]


@torch.no_grad()
def scored_responses(
    sampler: Sampler, batch: Sequence[PromptExample], k: int, number: int
) -> list[list[tuple[str, float]]]:
    """`n` responses of one role to each prompt of a batch, each with its score by the reward role (0 without one).

    Args:
        k: index of the role.
        number: of the batch.
    """
    backbone = sampler.backbone
    uniforms = uniform_table(len(batch) * sampler.n, sampler.response_length, "pairs", sampler.seed, k, number)
    ids = [example.ids for example in batch for _ in range(sampler.n)]
    rollout = sampler.responses.sample(ids, uniforms, sampler.roles[k])
    scores = torch.zeros(len(ids))
    if "reward" in backbone.roles:
        ended = with_end(rollout.sequences, backbone.end_id)
        (column,) = in_micro_batches(
            ended, sampler.scoring_budget, lambda micro, _: (backbone.scores(micro).unsqueeze(1),), (1,)
        )
        scores = column[:, 0].cpu()
    each = list(zip(response_texts(backbone, rollout), scores.tolist(), strict=True))
    return [each[i * sampler.n : (i + 1) * sampler.n] for i in range(len(batch))]


def as_completion(prompt: Prompt, text: str) -> Completion:
    """A response in the form of its prompt: text, or the assistant's message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]

"""What a person sees of an evaluation: how far it is, and what was answered before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from lorarlhf.data.rows import request_text
from lorarlhf.display import read_rows, readable

SAMPLES_SHOWN = 4


@contextlib.contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number just done: a bar on a terminal, a line each tenth elsewhere."""
    if console.is_terminal:
        with Progress(console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda number: progress.advance(task, number)
        return
    done = 0

    def advance(number: int) -> None:
        nonlocal done
        tenths = 10 * done // total
        done += number
        if 10 * done // total > tenths:
            console.print(f"{what} {done:,}/{total:,}", highlight=False, soft_wrap=True)

    yield advance


def show_samples(
    console: Console, prompts: Sequence[str], before: Sequence[str], after: Sequence[str], asker: str = "Prompt"
) -> None:
    """The first few prompts with the response before and after: a table on a terminal, plain lines elsewhere."""
    heads = (asker, "Before", "After")
    rows = list(zip(prompts, before, after, strict=True))[:SAMPLES_SHOWN]
    if console.is_terminal:
        table = Table(*heads, show_lines=True)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        return
    for row in rows:
        for head, text in zip(heads, row, strict=True):
            console.print(f"   {head:10} {text}", markup=False, highlight=False, soft_wrap=True)
        console.print()


def samples_table(path: Path, iteration: int, rows: int = SAMPLES_SHOWN) -> Table:
    """Prompt, response and reward of the first samples that one evaluation wrote to `samples.jsonl`."""
    table = Table("Prompt", "Response", "Reward", show_lines=True)
    for sample in [sample for sample in read_rows(path, "iteration") if sample["iteration"] == iteration][:rows]:
        table.add_row(escape(request_text(sample["prompt"])), escape(sample["response"]), readable(sample["reward"]))
    return table


def policy_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a policy has come to answer line by line, each with its heading."""
    before, after = evaluation["before"], evaluation["after"]
    who, reference, prompts = (
        evaluation.get("model", evaluation["stage"]),
        evaluation["reference"],
        evaluation["prompts"],
    )
    lines = [("", f"{who} against {reference} on {prompts:,} prompts of {evaluation['data']}")]
    lines += [
        (key.replace("_", " "), f"{before[key]:.3f} -> {after[key]:.3f}")
        for key in ("reward", "entropy", "response_length", "finished")
        if before[key] is not None
    ]
    lines.append(("KL", f"{after['kl']:.3f} nats a response"))
    if "win_rate" in evaluation:
        low, high = evaluation["win_rate_interval"]
        lines.append(("wins by reward", f"{evaluation['win_rate']:.1%}  (95%: {low:.1%} to {high:.1%})"))
    else:
        lines.append(("reward", "none: this run has no reward adapter and no ppo.reward_functions"))
    if "judge" in evaluation:
        lines.append(("wins by judge", _judged(evaluation["judge"])))
    return lines


def _judged(judge: Mapping[str, Any]) -> str:
    """`62.5% against sft  (95%: 50.1% to 73.4%), judged by NAME`."""
    parts = []
    for opponent, figures in judge["against"].items():
        low, high = figures["win_rate_interval"]
        parts.append(f"{figures['win_rate']:.1%} against {opponent}  (95%: {low:.1%} to {high:.1%})")
    unread = sum(figures["unread"] for figures in judge["against"].values())
    doubt = f"; {unread:,} of its answers were no verdict" if unread else ""
    return f"{', '.join(parts)}, judged by {judge['name']}{doubt}"

"""Judges of a policy: texts in, preferences out.

A win rate by the reward that a policy was trained against says that it pleases that reward. Whether it has come to
answer better, something has to say that it was not trained against (Gao et al. 2023).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console

from lorarlhf.data.rows import Prompt, prompt_text
from lorarlhf.errors import UserError
from lorarlhf.evaluation.report import counting
from lorarlhf.intervals import wilson

AT_ONCE = 4  # questions; a server that takes one at a time lets the others wait


@dataclass(frozen=True)
class Verdict:
    """What a judge says of two responses to one prompt.

    Attributes:
        preference: 1 where the first is better, 0 where the second is, 0.5 in a tie or where the judge contradicts
            itself.
        scores: of both, if the judge scores.
        unread: answers that were no verdict; the comparison counts as a tie.
    """

    preference: float
    scores: tuple[float, float] | None = None
    unread: int = 0


class Judge(Protocol):
    """Says which of two responses is better."""

    @property
    def name(self) -> str:
        """What a reader of the figures is told."""

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """A verdict on each of N prompts with two responses."""


@dataclass(frozen=True)
class ScoringJudge:
    """A reward model as a judge.

    Attributes:
        score: how good each response is to its prompt. Called once a comparison, so that it may load a model.
    """

    name: str
    score: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        scores = self.scores([*prompts, *prompts], [*first, *second])
        pairs = zip(scores[: len(first)], scores[len(first) :], strict=True)
        return [Verdict((a > b) + 0.5 * (a == b), (a, b)) for a, b in pairs]

    def scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """How good each response is to its prompt; one that comes several times is scored once."""
        keys = [(prompt_text(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
        different = dict(zip(keys, prompts, strict=True))
        scored = self.score([*different.values()], [text for _, text in different])
        score_of = dict(zip(different, scored, strict=True))
        return [score_of[key] for key in keys]


QUESTION = """\
Compare two responses to the same conversation. Judge how well each serves the person who asked: is it right, does it
answer what was asked, is it clear and no longer than it need be. Neither the order of the responses nor their length
is a merit.

<conversation>
{prompt}
</conversation>

<response_a>
{a}
</response_a>

<response_b>
{b}
</response_b>

Which response is better? Give your reason in one or two sentences. Then end with a line of its own, which is one of:
Verdict: A
Verdict: B
Verdict: tie
"""

_VERDICT = re.compile(r"verdict\W+(a|b|tie)\W*$", re.IGNORECASE | re.MULTILINE)
_ALONE = re.compile(r"\A\W*(a|b|tie)\W*\Z", re.IGNORECASE)  # a terse model leaves out the rest


@dataclass(frozen=True)
class ModelJudge:
    """A language model as a judge, asked about each pair in both orders: models favour a place (Zheng et al. 2023).

    Attributes:
        ask: what the model says to a question; called from several threads.
        console: where progress is shown.
    """

    name: str
    ask: Callable[[str], str]
    console: Console = field(default_factory=lambda: Console(quiet=True))

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """Raises UserError if no answer at all was a verdict."""
        verdicts: list[Verdict] = []
        with counting(self.console, "judged", len(prompts)) as advance, ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for verdict in pool.map(self._verdict, prompts, first, second):
                    verdicts.append(verdict)
                    advance(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # else the error waits for all other questions
                raise
        answers = 2 * sum(a != b for a, b in zip(first, second, strict=True))
        if answers and sum(verdict.unread for verdict in verdicts) == answers:
            raise UserError(
                f"{self.name}: none of its {answers} answers ends with a verdict (A, B or tie); take a model that "
                "follows instructions"
            )
        return verdicts

    def _verdict(self, prompt: Prompt, first: str, second: str) -> Verdict:
        if first == second:
            return Verdict(0.5)
        asked = prompt_text(prompt)
        straight = read_verdict(self.ask(question(asked, first, second)))
        turned = read_verdict(self.ask(question(asked, second, first)))
        if straight is None or turned is None:
            return Verdict(0.5, unread=[straight, turned].count(None))
        return Verdict(straight if straight == 1 - turned else 0.5)


def question(prompt: str, a: str, b: str) -> str:
    """What a model is asked; texts may hold braces."""
    return QUESTION.format(prompt=prompt, a=a, b=b)


def read_verdict(answer: str) -> float | None:
    """1 for A, 0 for B, 0.5 for a tie, None for what is no verdict; the last one counts, as thoughts may come first."""
    words = _VERDICT.findall(answer) or _ALONE.findall(answer)
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[words[-1].lower()] if words else None


def judged(
    judge: Judge, prompts: Sequence[Prompt], responses: Sequence[str], opponents: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Figures of responses against those of each opponent: win rate (a tie is half) with its 95% interval (Wilson).

    Of a judge that scores, `score` and `score_against` are mean scores.
    """
    count = len(prompts)
    others = [text for texts in opponents.values() for text in texts]
    # All in one call, as a judge may have a model to load.
    verdicts = judge.compare([*prompts] * len(opponents), [*responses] * len(opponents), others)
    parts = {name: verdicts[i * count : (i + 1) * count] for i, name in enumerate(opponents)}
    return {"name": judge.name, "against": {name: _figures(part) for name, part in parts.items()}}


def _figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    count = len(verdicts)
    won = wilson(sum(verdict.preference for verdict in verdicts) / count, count)
    figures: dict[str, Any] = {
        "win_rate": won.value,
        "win_rate_interval": [won.low, won.high],
        "ties": sum(verdict.preference == 0.5 for verdict in verdicts),
        "unread": sum(verdict.unread for verdict in verdicts),
    }
    scores = [verdict.scores for verdict in verdicts if verdict.scores is not None]
    if scores:
        figures |= {key: sum(pair[k] for pair in scores) / count for k, key in enumerate(("score", "score_against"))}
    return figures

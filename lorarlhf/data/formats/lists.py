"""Rows of several responses that are rated, ranked or compared two by two."""

from __future__ import annotations

from itertools import combinations

from lorarlhf.data.formats.format import Format
from lorarlhf.data.formats.judged import VOTES, judged
from lorarlhf.data.formats.pairs import transcript
from lorarlhf.data.formats.values import Row, answered, asked, is_list, is_text, number, one_of, records, text
from lorarlhf.data.rows import BadRow, Message, Preference, Scored


def all_pairs(
    prompt: list[Message], rated: list[tuple[list[Message], float]], with_margin: bool
) -> list[Preference | BadRow]:
    """Every two of several answers, of which a higher rating is better."""
    return [
        attempted(prompt, first, second, x - y, abs(x - y) if with_margin else None)
        for (first, x), (second, y) in combinations(rated, 2)
    ]


def attempted(
    prompt: list[Message], first: list[Message], second: list[Message], verdict: float, margin: float | None = None
) -> Preference | BadRow:
    """`judged`, with what is wrong with one pair in its place: the other pairs of a list may be sound."""
    try:
        return judged(prompt, first, second, verdict, margin)
    except BadRow as bad:
        return bad


def _nectar(row: Row) -> list[Preference | BadRow]:
    answers = [(answered(answer, "answer"), -number(answer, "rank")) for answer in records(row, "answers")]
    if len(answers) < 2:
        raise BadRow("answers holds fewer than two")
    return all_pairs(transcript(row, "prompt", open_end=True), answers, with_margin=False)


def _ratings(row: Row) -> list[tuple[list[Message], float]]:
    return [(answered(done, "response"), number(done, "overall_score")) for done in records(row, "completions")]


def _ultrafeedback(row: Row) -> list[Preference | BadRow]:
    rated = _ratings(row)
    if len(rated) < 2:
        raise BadRow("completions holds fewer than two")
    return all_pairs(asked(row, "instruction"), rated, with_margin=True)


def _fine_grained(row: Row) -> list[Preference | BadRow]:
    """Six verdicts on four answers to a question about passages (Wu et al. 2023)."""
    answers = [answered(row, f"prediction {i}") for i in range(1, 5)]
    verdicts = row["preference"]
    if len(verdicts) != 6:
        raise BadRow("preference does not hold six verdicts")
    by_number = {str(i): verdict for i, verdict in enumerate(verdicts)}
    passages = [f"{passage[0]}\n{' '.join(passage[1:])}" for passage in row["passages"]]
    prompt: list[Message] = [{"role": "user", "content": "\n\n".join([*passages, text(row, "question")])}]
    return [
        attempted(prompt, first, second, one_of(by_number, str(i), VOTES))
        for i, (first, second) in enumerate(combinations(answers, 2))
    ]


RATED: tuple[Format[Preference], ...] = (
    Format(
        "Nectar: ranked answers",
        ("prompt", "answers"),
        lambda row: is_text("prompt")(row) and is_list("answers")(row),
        _nectar,
    ),
    Format(
        "UltraFeedback: scored completions",
        ("instruction", "completions"),
        lambda row: is_text("instruction")(row) and is_list("completions")(row),
        _ultrafeedback,
    ),
    Format(
        "fine-grained QA: four predictions",
        ("question", "passages", "prediction 1", "preference"),
        lambda row: is_text("question", "prediction 1")(row) and is_list("passages", "preference")(row),
        _fine_grained,
    ),
)


def _scores(row: Row) -> list[Scored | BadRow]:
    return [Scored(asked(row, "instruction"), answer, score) for answer, score in _ratings(row)]


SCORED_COMPLETIONS: Format[Scored] = Format(
    "UltraFeedback: scored completions",
    ("instruction", "completions"),
    lambda row: is_text("instruction")(row) and is_list("completions")(row),
    _scores,
)

"""Score the rows of a file with a run's reward model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lorarlhf.data.endings import LINES, check_ending
from lorarlhf.data.examples import load_demonstrations, load_preferences
from lorarlhf.data.formats import PREFERENCES
from lorarlhf.data.reading import Reader
from lorarlhf.data.rows import Demonstration, Preference
from lorarlhf.data.sources import iter_rows, split_of
from lorarlhf.errors import UserError
from lorarlhf.evaluation.report import counting
from lorarlhf.evaluation.reward_model import RewardModel
from lorarlhf.files import written_file
from lorarlhf.recipe.sections import DataConfig, Source
from lorarlhf.run import Run

ROWS_AT_ONCE = 256  # a batch is written as soon as it is scored


def score_file(
    run: Run, source: Source | str, split: str, out: Path, console: Console, allow_other_base: bool = False
) -> int:
    """Write the rows of a source, each with its score, to a new file; return how many.

    Pairs gain `chosen_score` and `rejected_score`, a prompt with a completion gains `score`: rows that
    `reward.objective: regression` can be trained on.

    Raises:
        UserError: there is such a file already, the rows are neither pairs nor completions, or the run has no reward
            model.
    """
    check_ending(out, LINES)
    if out.exists():
        raise UserError(f"{out}: exists, and nothing is overwritten; give --out another name")
    run.adapter("reward")  # says so before anything is loaded
    rows = _rows(source, split)
    model = RewardModel.from_run(run, allow_other_base)
    with (
        written_file(out) as part,
        part.open("w", encoding="utf-8") as file,
        counting(console, "scored", len(rows)) as advance,
    ):
        for start in range(0, len(rows), ROWS_AT_ONCE):
            batch = rows[start : start + ROWS_AT_ONCE]
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _scored(model, batch))
            advance(len(batch))
    return len(rows)


def _rows(source: Source | str, split: str) -> Sequence[Preference | Demonstration]:
    """Pairs, where the columns are those of pairs; else completions."""
    config = DataConfig(preferences=source, sft=source, train_split=split, test_size=0.0, ties="keep")
    try:
        next(Reader(PREFERENCES, "skip").read(iter_rows(source, split_of(source, split))), None)
    except UserError:  # no pairs; what else it might be, the next reader says
        return load_demonstrations(config, "train").rows
    return load_preferences(config, "train").rows


def _scored(model: RewardModel, rows: Sequence[Preference | Demonstration]) -> list[dict[str, Any]]:
    sides: list[Demonstration] = []
    for row in rows:
        if isinstance(row, Preference):
            sides += [Demonstration(row.prompt, side) for side in (row.chosen, row.rejected)]
        else:
            sides.append(row)
    scores = iter(model.scores(sides))
    scored: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, Preference):
            texts = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
            scored.append({**texts, "chosen_score": next(scores), "rejected_score": next(scores)})
        else:
            scored.append({"prompt": row.prompt, "completion": row.completion, "score": next(scores)})
    return scored

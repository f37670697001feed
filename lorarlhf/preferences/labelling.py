"""What to ask whom next. It follows from the pairs, the labels in the file and the seed: no other state."""

from __future__ import annotations

import getpass
import json
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from lorarlhf.data.rows import Completion
from lorarlhf.preferences.labels import Choice, Label, LabelFile, LabelKey, Side, now
from lorarlhf.preferences.pairs import Pair
from lorarlhf.recipe.sections import Section

REPEATED_SHARE = 0.05  # of the pairs come back with sides swapped
REPEATED_AFTER = 20  # other labels at least, so that the answer is not just remembered
PACE_OVER = 50  # last labels

_OTHER: dict[Side, Side] = {"a": "b", "b": "a"}


class AlreadyLabelled(Exception):  # noqa: N818 - what it is
    """The answer is to a task that is no longer open: it was answered in another tab, or is not of this file."""


class Answer(Section):
    """What the page sends: sides as shown, so that it need not know which response is which."""

    task: str
    pair_id: str
    choice: Literal["left", "right", "tie", "both_bad", "skip"]
    seconds: Annotated[float, Field(ge=0)]
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    comment: Annotated[str, Field(max_length=2000)] | None = None
    criteria: dict[str, Literal["left", "right", "tie"]] = Field(default_factory=dict)
    annotator: str | None = None


@dataclass(frozen=True)
class Task:
    """One pair as one person sees it. `id` hashes all that is shown: an answer to anything else does not count."""

    id: str
    pair: Pair
    repeat: bool
    left: Side

    @property
    def left_response(self) -> Completion:
        return self.pair.response_a if self.left == "a" else self.pair.response_b

    @property
    def right_response(self) -> Completion:
        return self.pair.response_b if self.left == "a" else self.pair.response_a


@dataclass(frozen=True)
class Progress:
    """How far one person has come. `seconds` is the median of recent labels; `consistent` of `repeats` agreed."""

    done: int
    total: int
    seconds: float | None
    repeats: int
    consistent: int
    can_undo: bool


class Labelling:
    """Pairs, a file of labels, and any number of annotators in turn.

    Each pair is judged by `criteria`, if there are any: the first of them is what an answer's choice speaks of.
    """

    def __init__(self, pairs: list[Pair], file: LabelFile, seed: int, criteria: tuple[str, ...] = ()) -> None:
        self.pairs = {pair.id: pair for pair in pairs}
        self.file = file
        self.seed = seed
        self.criteria = criteria
        self._planned_repeats = lru_cache(maxsize=64)(self._plan_repeats)

    def next_task(self, annotator: str) -> Task | None:
        """A repeat that is due, else the next pair in the file's order, else a repeat that is left, else None."""
        labels = self.file.labels.of(annotator)
        due = self._due_repeat(annotator, labels, REPEATED_AFTER)
        fresh = None if due else next((pair for pair in self.pairs if (pair, False) not in labels), None)
        pair_id = due or fresh or self._due_repeat(annotator, labels, 0)
        return self._task(annotator, pair_id, labels) if pair_id else None

    def record(self, annotator: str, answer: Answer) -> Label:
        """Put an answer on disk and return it as a label. Raises AlreadyLabelled, ValueError for a criterion that
        is not asked for, or OSError if it cannot be written."""
        if not set(answer.criteria) <= set(self.criteria[1:]):
            raise ValueError("criteria: not those asked for")
        task = self._task(annotator, answer.pair_id, self.file.labels.of(annotator))
        if task is None or task.id != answer.task:
            raise AlreadyLabelled
        sides: dict[str, Choice] = {"left": task.left, "right": _OTHER[task.left]}
        better = answer.choice in sides
        choice: Choice = sides[answer.choice] if better else answer.choice  # type: ignore[assignment]
        criteria: dict[str, Choice] = dict.fromkeys(self.criteria[:1], choice)
        criteria |= {name: sides.get(side, "tie") for name, side in answer.criteria.items()}
        label = Label(
            pair_id=task.pair.id,
            annotator=annotator,
            choice=choice,
            left=task.left,
            repeat=task.repeat,
            seconds=round(answer.seconds, 2),
            strength=answer.strength if better else None,
            comment=(answer.comment or "").strip() or None,
            time=now(),
            seed=self.seed,
            criteria=criteria if choice != "skip" else {},
        )
        self.file.append(label)
        return label

    def undo(self, annotator: str) -> Label | None:
        """Take back a person's last label and return it; its pair is then the next to be asked."""
        return self.file.undo(annotator)

    def progress(self, annotator: str) -> Progress:
        labels = self.file.labels.of(annotator)
        here = [label for label in labels.values() if label.pair_id in self.pairs]
        fresh = sum((pair, False) not in labels for pair in self.pairs)
        repeats = sum(self._may_repeat(pair, labels) for pair in self._planned_repeats(annotator))
        again = {label.pair_id: label.choice for label in here if label.repeat and (label.pair_id, False) in labels}
        return Progress(
            done=len(here),
            total=len(here) + fresh + repeats,
            seconds=median(label.seconds for label in here[-PACE_OVER:]) if here else None,
            repeats=len(again),
            consistent=sum(labels[pair, False].choice == choice for pair, choice in again.items()),
            can_undo=bool(labels),
        )

    def unknown_labels(self) -> int:
        """How many labels in the file are for pairs that are not among these."""
        return sum(label.pair_id not in self.pairs for label in self.file.labels)

    def _task(self, annotator: str, pair_id: str, labels: dict[LabelKey, Label]) -> Task | None:
        """The task that this pair is for this person now: its first time, its repeat, or none."""
        pair = self.pairs.get(pair_id)
        if pair is None:
            return None
        first = labels.get((pair_id, False))
        if first is None:
            left: Side = "a" if self._draw("side", annotator, pair_id) < 2**63 else "b"
        elif pair_id in self._planned_repeats(annotator) and self._may_repeat(pair_id, labels):
            left = _OTHER[first.left]
        else:
            return None
        shown = [annotator, pair.id, first is not None, left, pair.prompt, pair.response_a, pair.response_b]
        return Task(f"{_hash(shown):016x}", pair, first is not None, left)

    def _plan_repeats(self, annotator: str) -> frozenset[str]:
        """Which pairs come back; not the last ones, after which too little would follow."""
        early = list(self.pairs)[:-REPEATED_AFTER]
        count = min(round(REPEATED_SHARE * len(self.pairs)), len(early))
        return frozenset(sorted(early, key=lambda pair: self._draw("repeat", annotator, pair))[:count])

    def _may_repeat(self, pair_id: str, labels: dict[LabelKey, Label]) -> bool:
        first = labels.get((pair_id, False))
        return (pair_id, True) not in labels and (first is None or first.choice != "skip")

    def _due_repeat(self, annotator: str, labels: dict[LabelKey, Label], after: int) -> str | None:
        planned = self._planned_repeats(annotator)
        for pair, repeat in list(labels)[: max(len(labels) - after, 0)]:
            if not repeat and pair in planned and self._may_repeat(pair, labels):
                return pair
        return None

    def _draw(self, purpose: str, annotator: str, pair_id: str) -> int:
        return _hash([self.seed, purpose, annotator, pair_id])


def annotator_name(text: str) -> str:
    """A name as it is kept: one spelling of the same letters, single spaces. Raises ValueError if it cannot serve."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise ValueError("a name has 1 to 64 characters that can be printed")
    return name


def criteria_names(text: str) -> tuple[str, ...]:
    """The names in `helpful,honest`. Raises ValueError if they cannot serve."""
    names = [" ".join(name.split()) for name in text.split(",")]
    if len(set(names)) < len(names) or not all(1 <= len(name) <= 64 and name.isprintable() for name in names):
        raise ValueError("write different names with commas between, as in helpful,honest; the first one decides")
    return tuple(names)


def login_name() -> str:
    """Who is logged in, to be offered as an annotator; empty where nobody is, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):
        return ""


def _hash(values: list[object]) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(blake2b(json.dumps(values).encode(), digest_size=8).digest(), "big")

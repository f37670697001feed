"""What to ask whom next. It follows from the pairs, the labels in the file, the seed, and who has which pair open."""

from __future__ import annotations

import getpass
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from statistics import median
from time import monotonic
from typing import Annotated, Literal

from pydantic import Field

from lorarlhf.data.rows import Completion
from lorarlhf.preferences.agreement import Answer as Vote
from lorarlhf.preferences.agreement import most_disputed
from lorarlhf.preferences.labels import Choice, Label, LabelFile, LabelKey, Side, now
from lorarlhf.preferences.pairs import Pair
from lorarlhf.recipe.sections import Section

REPEATED_SHARE = 0.05  # of the pairs come back with sides swapped
REPEATED_AFTER = 20  # other labels at least, so that the answer is not just remembered
PACE_OVER = 50  # last labels
OPEN_FOR = 600.0  # seconds after which a pair that somebody left open goes to the others

_OTHER: dict[Side, Side] = {"a": "b", "b": "a"}
_VOTES: dict[Choice, Vote] = {"a": "a", "b": "b", "tie": "tie", "both_bad": "tie"}


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
        """The response that is shown on the left."""
        return self.pair.response_a if self.left == "a" else self.pair.response_b

    @property
    def right_response(self) -> Completion:
        """The response that is shown on the right."""
        return self.pair.response_b if self.left == "a" else self.pair.response_a


@dataclass(frozen=True)
class Progress:
    """How far one person has come.

    `seconds` is the median of recent labels; `consistent` of `repeats` agreed; people are divided on `disputed` pairs,
    the most that are listed; `elsewhere` are open before somebody else.
    """

    done: int
    total: int
    seconds: float | None
    repeats: int
    consistent: int
    can_undo: bool
    disputed: int
    elsewhere: int


@dataclass(frozen=True)
class Dispute:
    """A pair that several people have answered differently: the task as one of them sees it, and who said what."""

    task: Task
    votes: Counter[Vote]


class Labelling:
    """Pairs, a file of labels, and any number of annotators, in turn or at once.

    Each pair is judged by `criteria`, if there are any: the first of them is what an answer's choice speaks of. The
    share `overlap` of the pairs is for every annotator, the others are for whoever comes to them first.
    """

    def __init__(
        self, pairs: list[Pair], file: LabelFile, seed: int, criteria: tuple[str, ...] = (), overlap: float = 0.0
    ) -> None:
        self.pairs = {pair.id: pair for pair in pairs}
        self.file = file
        self.seed = seed
        self.criteria = criteria
        self._queue = list(self.pairs)
        drawn = sorted(self.pairs, key=lambda pair: _hash([seed, "overlap", pair]))
        self._for_one = frozenset(drawn[round(overlap * len(drawn)) :])
        self._open: dict[str, tuple[str, float]] = {}  # by annotator, since when on the clock `monotonic`
        self._planned_repeats = lru_cache(maxsize=64)(self._plan_repeats)

    def next_task(self, annotator: str) -> Task | None:
        """What the annotator has open, else a repeat that is due, else the next pair in order (the file's, unless
        `order` was told otherwise) that is left to them, else a repeat that is left, else None."""
        labels = self.file.labels.of(annotator)
        task = self._task(annotator, self._opened(annotator), labels)
        if task is None:
            due = self._due_repeat(annotator, labels, REPEATED_AFTER)
            elsewhere = self._open_elsewhere(annotator)
            fresh = next((pair for pair in self._unanswered(annotator, labels) if pair not in elsewhere), None)
            task = self._task(annotator, due or fresh or self._due_repeat(annotator, labels, 0) or "", labels)
        if task is None:
            self._open.pop(annotator, None)
        else:
            self._open[annotator] = task.pair.id, monotonic()
        return task

    def order(self, first: Sequence[str]) -> None:
        """Have these pairs asked before all others."""
        self._queue = list(dict.fromkeys([*first, *self.pairs]))

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
        if self._opened(annotator) == label.pair_id:
            del self._open[annotator]
        return label

    def undo(self, annotator: str) -> Label | None:
        """Take back a person's last label of these pairs and return it; its pair is then the next to be asked."""
        undone = self.file.undo(annotator, self.pairs)
        if undone:
            self._open[annotator] = undone.pair_id, monotonic()
        return undone

    def disputed(self, annotator: str) -> list[Dispute]:
        """The pairs on which people are most divided; the sides are those on which this person sees the responses."""
        by_pair: dict[str, dict[str, Vote]] = defaultdict(dict)
        for label in self.file.labels:
            if label.pair_id in self.pairs and not label.repeat and label.choice != "skip":
                by_pair[label.pair_id][label.annotator] = _VOTES[label.choice]
        return [Dispute(self._first_task(annotator, pair), votes) for pair, votes in most_disputed(by_pair)]

    def reopen(self, annotator: str, pair_id: str) -> Label | None:
        """Have a pair asked next, whoever has answered it. A label that this person gave it is taken back and returned.

        Raises KeyError for a pair that is not among these, OSError if that cannot be written.
        """
        pair = self.pairs[pair_id]
        label = self.file.labels.of(annotator).get((pair.id, False))
        if label:
            self.file.take_back(label)
        self._open[annotator] = pair.id, monotonic()
        return label

    def progress(self, annotator: str) -> Progress:
        """How far a person has come, at what pace, and how consistently."""
        labels = self.file.labels.of(annotator)
        here = [label for label in labels.values() if label.pair_id in self.pairs]
        unanswered, elsewhere = set(self._unanswered(annotator, labels)), self._open_elsewhere(annotator)
        fresh = unanswered - elsewhere
        planned = [pair for pair in self._planned_repeats(annotator) if pair in fresh or (pair, False) in labels]
        repeats = sum(self._may_repeat(pair, labels) for pair in planned)
        times = [label.seconds for label in here[-PACE_OVER:] if label.seconds is not None]
        again = {label.pair_id: label.choice for label in here if label.repeat and (label.pair_id, False) in labels}
        return Progress(
            done=len(here),
            total=len(here) + len(fresh) + repeats,
            seconds=median(times) if times else None,
            repeats=len(again),
            consistent=sum(labels[pair, False].choice == choice for pair, choice in again.items()),
            can_undo=bool(here),
            disputed=len(self.disputed(annotator)),
            elsewhere=len(unanswered & elsewhere),
        )

    def unknown_labels(self) -> int:
        """How many labels in the file are for pairs that are not among these."""
        return sum(label.pair_id not in self.pairs for label in self.file.labels)

    def _opened(self, annotator: str) -> str:
        return self._open.get(annotator, ("", 0.0))[0]

    def _unanswered(self, annotator: str, labels: dict[LabelKey, Label]) -> Iterator[str]:
        """Pairs that are this person's to answer, in order: one that is for one alone may be answered already."""
        answered = {label.pair_id for label in self.file.labels if not label.repeat and label.choice != "skip"}
        taken = (answered & self._for_one) - {self._opened(annotator)}
        return (pair for pair in self._queue if (pair, False) not in labels and pair not in taken)

    def _open_elsewhere(self, annotator: str) -> set[str]:
        """Pairs for one alone that somebody else has open."""
        oldest = monotonic() - OPEN_FOR
        return {
            pair
            for who, (pair, since) in self._open.items()
            if who != annotator and since > oldest and pair in self._for_one
        }

    def _task(self, annotator: str, pair_id: str, labels: dict[LabelKey, Label]) -> Task | None:
        """The task that this pair is for this person now: its first time, its repeat, or none."""
        if pair_id not in self.pairs:
            return None
        first = labels.get((pair_id, False))
        if first is None:
            return self._first_task(annotator, pair_id)
        if pair_id in self._planned_repeats(annotator) and self._may_repeat(pair_id, labels):
            return self._shown(annotator, pair_id, True, _OTHER[first.left])
        return None

    def _first_task(self, annotator: str, pair_id: str) -> Task:
        left: Side = "a" if self._draw("side", annotator, pair_id) < 2**63 else "b"
        return self._shown(annotator, pair_id, False, left)

    def _shown(self, annotator: str, pair_id: str, repeat: bool, left: Side) -> Task:
        pair = self.pairs[pair_id]
        shown = [annotator, pair.id, repeat, left, pair.prompt, pair.response_a, pair.response_b]
        return Task(f"{_hash(shown):016x}", pair, repeat, left)

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

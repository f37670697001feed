"""What a task has tried, and what did not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Task = Callable[[Path], "Tally"]  # given an empty folder


@dataclass
class Tally:
    """Counts of one task.

    Attributes:
        tried: faults, calls or probes.
        failures: a text of each that did not hold.
        more: other counts, by what they count.
    """

    tried: int = 0
    failures: list[str] = field(default_factory=list)
    more: Counter[str] = field(default_factory=Counter)

    def add(self, wrong: str = "") -> None:
        """One more was tried, and this is wrong with what came of it."""
        self.tried += 1
        if wrong:
            self.failures.append(wrong)

"""How long a stage has taken, over all its starts."""

from __future__ import annotations

import json
import time
from pathlib import Path

from lorarlhf.json_file import read_object

SECONDS_FILE = "seconds.json"


class Stopwatch:
    """Counts from where it is made, and on from the checkpoint that the stage goes on from.

    What an earlier start did after its last checkpoint is lost, and is done and counted again.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self._start = time.perf_counter()
        path = checkpoint and checkpoint / SECONDS_FILE
        # Checkpoints of version 0.1 have none; of later ones, the manifest would miss it.
        self._before = float(read_object(path)["seconds"]) if path and path.is_file() else 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._start

    def save(self, checkpoint: Path) -> None:
        """Write how long it has been, for a start that goes on from there."""
        (checkpoint / SECONDS_FILE).write_text(json.dumps({"seconds": self.seconds}), encoding="utf-8")

"""Reading of a run's folder, which may be half written, of another version, or from somebody else.

Nothing that lies there is trusted to have a form: what cannot be read is left out, and a line says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorarlhf.recipe.sections import Stage
from lorarlhf.recipe.yaml import parse_yaml
from lorarlhf.run import RECIPE, is_current

LARGEST = 1e150


@dataclass
class Folder:
    """The files of a run, read as they are asked for.

    Attributes:
        faults: what could not be read, a line each, by the file's name in the run.
    """

    path: Path
    faults: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        """Of a file; empty where there is none. No link out of the run is followed: its page may be shared."""
        path = self.path / name
        try:
            if not path.is_file():
                return ""
            if not path.resolve().is_relative_to(self.path.resolve()):
                self.faults.append(f"{name}: a link that leads out of the run's folder; left out")
                return ""
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self.faults.append(f"{name}: cannot be read: {error.strerror}")
            return ""

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Objects of a file of JSON lines. A last line without its end is still being written, and is left out."""
        rows, bad = [], []
        for number, line in enumerate(self.text(name).split("\n")[:-1], 1):
            value = _parsed(line)
            if isinstance(value, dict):
                rows.append(value)
            else:
                bad.append(number)
        if bad:
            self.faults.append(f"{name}:{bad[0]}: not a JSON object; left out ({len(bad)} such lines)")
        return rows

    def object(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; empty where there is none."""
        text = self.text(name)
        value = _parsed(text)
        if text and not isinstance(value, dict):
            self.faults.append(f"{name}: not a JSON object; left out")
        return value if isinstance(value, dict) else {}

    def measured(self, stage: Stage, name: str) -> dict[str, Any]:
        """The object in a JSON file on what a stage has trained; empty where it has trained on since."""
        found = self.object(f"{stage}/{name}")
        if not found or is_current(found, self.path / stage):
            return found
        self.faults.append(
            f"{stage}/{name}: of another adapter than lies beside it; left out, `lorarlhf evaluate` makes it anew"
        )
        return {}

    def settings(self, name: str = RECIPE) -> dict[str, Any]:
        """Dotted keys of a recipe and their values. It is resolved: what it may say of extending others is not read."""
        document = parse_yaml(self.text(name))
        if document.faults:
            self.faults.append(f"{name}:{document.faults[0].line}: {document.faults[0].message}")
        return dict(_flat(document.data)) if isinstance(document.data, dict) else {}


def number(value: Any) -> float | None:
    """A value that can be drawn, to 1e150 either way, so that sums and squares are finite; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if abs(as_float) <= LARGEST else None  # not NaN either


def part(value: Any, key: str) -> dict[str, Any]:
    """An object within an object; empty where there is none."""
    inner = value.get(key) if isinstance(value, Mapping) else None
    return dict(inner) if isinstance(inner, Mapping) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, if it is one."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat += _flat(inner, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", inner))
    return flat

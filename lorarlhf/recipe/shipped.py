"""What ships with lorarlhf: its recipes, found by name, and the data that recipes name as `shipped:...`."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

from lorarlhf.errors import UserError, first_line

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = "shipped:"
CONSTRAINTS = "constraints.txt"
_PLANNED = re.compile(r"^# Planned for ([\d.]+) GiB.*?: (.*) with ([\d,]+) tokens at a time\.$", re.MULTILINE)


class RecipeInfo(NamedTuple):
    """A recipe that ships with lorarlhf; the summary is the first line of its header comment."""

    name: str
    path: Path
    summary: str


class Planned(NamedTuple):
    """The plan of a recipe for a card: GiB free on it, GiB that each stage takes, tokens of a micro-batch of ppo."""

    free: float
    peaks: dict[str, float]
    tokens: int


def shipped_folder(name: Literal["recipes", "data"]) -> Path:
    """Inside the package when installed from a wheel, next to it in the repository."""
    for folder in (PACKAGE / "shipped" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the {name} that ship with lorarlhf are not in {PACKAGE}; install it again")


def resolve_path(value: str) -> str:
    """`shipped:demo/model` as the path of that file or folder, `~` expanded, everything else (Hub ids, paths) as it is.

    Raises:
        UserError: nothing of that name ships, or `~name` is nobody.
    """
    if value.startswith("~"):
        try:
            return str(Path(value).expanduser())
        except RuntimeError:
            raise UserError(f"{value}: there is no such user here; write the path in full") from None
    if not value.startswith(SHIPPED):
        return value
    folder = shipped_folder("data")
    path = folder / value.removeprefix(SHIPPED)
    if not exists(path) or folder.resolve() not in path.resolve().parents:
        raise UserError(f"{value}: nothing of that name ships with lorarlhf; look in {folder}")
    return str(path)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; there is none of a name too long, or with a NUL in it, for any system."""
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)[:80]!r}: no such name can be ({first_line(error)}); check the path") from None


def list_recipes() -> list[RecipeInfo]:
    """The recipes that ship, sorted by name; what they extend (`base/...`) is left out."""
    infos = []
    for path in sorted(shipped_folder("recipes").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        infos.append(RecipeInfo(path.stem, path, first.removeprefix("#").strip()))
    return infos


def planned_for(path: Path) -> Planned | None:
    """What a recipe's header says that `lorarlhf plan` finds; None of a recipe that is for no card."""
    said = _PLANNED.search(path.read_text(encoding="utf-8"))
    if said is None:
        return None
    peaks = {stage: float(peak) for stage, peak in (part.split() for part in said[2].split(", "))}
    return Planned(float(said[1]), peaks, int(said[3].replace(",", "")))


def pinned_versions() -> dict[str, str]:
    """The versions that this lorarlhf is tested with, by package."""
    for path in (PACKAGE / "shipped" / CONSTRAINTS, PACKAGE.parent / CONSTRAINTS):
        if path.is_file():
            pins = (line.partition("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line)
            return {name.strip(): version.strip() for name, _, version in pins}
    raise FileNotFoundError(f"{CONSTRAINTS} is not in {PACKAGE}; install lorarlhf again")


def find_recipe(name_or_path: str, relative_to: Path = Path()) -> Path:
    """The file of a recipe: what ends in .yaml or .yml is a path, anything else the name of one that ships.

    Raises:
        UserError: no such file or name.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = relative_to / resolve_path(name_or_path)
        if not exists(path) or not path.is_file():
            raise UserError(f"{path}: no such recipe file; check the path")
        return path
    folder = shipped_folder("recipes")
    shipped = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    if name_or_path in shipped:
        return shipped[name_or_path]
    near = get_close_matches(name_or_path.lower(), shipped, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`lorarlhf recipes list` shows the names"
    raise UserError(f"{name_or_path}: no recipe of that name; {hint} (a path to your own must end in .yaml)")

"""The order of folders: imports run one way, deferred ones inside functions too; and what is public says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lorarlhf"
# From the top down; a line may import the lines below it, and within a line nothing but itself.
ORDER = (
    {"__main__"},
    {"cli"},
    {"stages"},
    {"rl", "training", "evaluation", "preferences", "planner", "publishing", "reporting", "demo"},
    {"generation"},
    {"backbone"},
    {"data"},
    {"run", "display", "loopback", "trackers"},
    {"manifest", "lock", "stopwatch"},
    {"recipe"},
    {"json_file", "downloads"},
    {"errors", "files", "memory", "intervals", "signals", "version"},
)
# Within the fourth line: the planner runs the passes of both trainers, and an evaluation scores as rl does.
ACROSS = {("planner", "rl"), ("planner", "training"), ("evaluation", "rl")}


def room(module: str) -> str:
    """`lorarlhf.rl.losses` lies in `rl`; `lorarlhf.errors` is a room of its own."""
    return module.split(".")[1]


def imports_of(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            names = [
                f"{node.module}.{alias.name}" if node.module == "lorarlhf" else node.module for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name.startswith("lorarlhf."))


def crossings(package: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """File and module of each import from one room into another, with the two rooms."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package.parent).as_posix()
        inside = room(file.removesuffix(".py").replace("/", "."))
        if inside == "__init__":  # the face hands names on from everywhere, lazily
            continue
        for module in imports_of(path):
            if room(module) != inside:
                found[file, module] = inside, room(module)
    return found


def allowed(above: str, below: str) -> bool:
    line = {name: number for number, names in enumerate(ORDER) for name in names}
    return line[above] < line[below] or (above, below) in ACROSS


CROSSINGS = crossings(PACKAGE)


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} <= set.union(*ORDER)


def test_imports_run_one_way():
    assert {place for place, rooms in CROSSINGS.items() if not allowed(*rooms)} == set()


def test_no_circle_between_folders():
    graph: dict[str, set[str]] = {}
    for above, below in CROSSINGS.values():
        graph.setdefault(above, set()).add(below)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_deferred_import_counts(tmp_path):
    folder = tmp_path / "lorarlhf" / "data"
    folder.mkdir(parents=True)
    (folder / "late.py").write_text("def f():\n    from lorarlhf.cli.main import main\n    import lorarlhf.rl.losses\n")
    rooms = crossings(tmp_path / "lorarlhf")
    assert rooms == {
        ("lorarlhf/data/late.py", "lorarlhf.cli.main"): ("data", "cli"),
        ("lorarlhf/data/late.py", "lorarlhf.rl.losses"): ("data", "rl"),
    }
    assert not any(allowed(*pair) for pair in rooms.values())


def undocumented(package: Path) -> set[str]:
    """`file:name` of public functions and classes of modules, methods aside, that do not say what they are."""
    found = set()
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name[0] == "_":
                continue
            is_overload = any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)
            if not is_overload and not ast.get_docstring(node):
                found.add(f"{path.relative_to(package).as_posix()}:{node.name}")
    return found


def test_what_is_public_says_what_it_is():
    assert undocumented(PACKAGE) == set()


def test_what_says_nothing_is_found(tmp_path):
    silent = ['"""A module."""', "def f(): ...", "async def g(): ...", "class C: ...", "def _private(): ..."]
    says = ["@typing.overload", "def h(): ...", "def h():", '    """Says."""']
    (tmp_path / "m.py").write_text("\n".join(silent + says))
    assert undocumented(tmp_path) == {"m.py:f", "m.py:g", "m.py:C"}

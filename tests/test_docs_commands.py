"""Commands that documentation and recipes tell people to type: they exist, and what takes seconds is run."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from demo_runs import DEMO
from pages import own_commands, run
from typer.core import TyperGroup

from lorarlhf.cli.main import app
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.shipped import list_recipes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]
UsageError = typer.BadParameter.__base__  # click's or, since typer brings its own click, typer's
LAUNCHED = re.compile(r"^(?:accelerate launch|torchrun) .*?-m (?=lorarlhf )")


def typed(page: Path) -> list[list[str]]:
    """Arguments of each `lorarlhf` command that has a line of its own on a page, but for those that ask for help."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    if page.suffix == ".yaml":
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    lines = [LAUNCHED.sub("", line.strip()) for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r"lorarlhf [a-z]+\b(?!.*--help)", line)]


def parse(arguments: list[str]) -> dict[str, object]:
    """The options of a command as it would get them; raises UsageError for one that there is not."""
    command = typer.main.get_command(app)
    context, rest = None, arguments
    while True:
        context = command.make_context(command.name, rest, parent=context)
        rest = [*context._protected_args, *context.args]
        if not (isinstance(command, TyperGroup) and rest):
            return context.params
        _, command, rest = command.resolve_command(context, rest)


@pytest.mark.parametrize("page", [page for page in PAGES if typed(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_there_with_their_options_and_keys(page):
    shipped = {info.name for info in list_recipes()}
    for arguments in typed(page):
        options = parse(arguments)
        sets = options.get("set_") or []
        if sets:  # a recipe of one's own may have any keys that there are
            recipe = options.get("recipe")
            load_recipe(recipe if recipe in shipped else "demo", {}, sets)


def test_what_is_no_command_is_told():
    for wrong in ("evaluat --run r", "evaluate --runn r", "collect exprt", "data split a b c --test-siz 1"):
        with pytest.raises(UsageError):
            parse(shlex.split(wrong))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the files that pages speak of."""
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (DEMO / "preferences.jsonl").read_text().splitlines()[:40]]
    for name, part in (("mine.jsonl", rows[:30]), ("test.jsonl", rows[25:])):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in part))
    Path("mine.csv").write_text("question,better,worse\nHow much?,Two dollars.,Go away.\nWhen?,At nine.,Never mind.\n")
    return tmp_path


def test_the_page_on_looking_at_data(files, monkeypatch, capsys):
    for arguments in own_commands((DOCS / "looking-at-data.md").read_text(encoding="utf-8")):
        assert run(monkeypatch, arguments) == 0, (arguments, capsys.readouterr().err)
    assert {"mixed.jsonl", "train.jsonl", "held_out.jsonl"} <= {path.name for path in files.iterdir()}

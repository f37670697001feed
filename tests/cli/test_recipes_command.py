"""`lorarlhf recipes list | show | copy`."""

import pytest
from typer.testing import CliRunner

from lorarlhf.cli.recipes import recipes_app
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.shipped import list_recipes


def run(*args, ok=True):
    result = CliRunner().invoke(recipes_app, [str(arg) for arg in args])
    assert (result.exit_code == 0) == ok, result.output
    return result


def refusal(*args):
    error = run(*args, ok=False).exception
    assert isinstance(error, UserError)
    return str(error)


def test_list_is_plain_lines_when_piped():
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [info.name for info in list_recipes()]
    assert all(info.summary in line for info, line in zip(list_recipes(), lines, strict=True))


def test_list_is_a_table_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = run("list").stdout
    assert "Recipe" in output
    assert "demo" in output


def test_show_prints_the_file():
    info = list_recipes()[0]
    assert run("show", info.name).stdout == info.path.read_text(encoding="utf-8")


def test_show_highlights_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = run("show", "demo").stdout
    assert "\x1b[" in output
    assert "shipped:demo/model" in output


def test_show_unknown():
    assert "did you mean demo?" in refusal("show", "dmo")


@pytest.mark.parametrize("name", [info.name for info in list_recipes()])
def test_copy_loads_like_the_original(name, tmp_path):
    path = tmp_path / "new" / "mine.yaml"
    assert str(path) in run("copy", name, path).stdout
    assert load_recipe(str(path)) == load_recipe(name)


def test_copy_never_overwrites(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    assert refusal("copy", "demo", path) == f"{path}: exists already and is not overwritten; choose another name"
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("demo", "mine", "must end in .yaml; write for example {tmp}/mine.yaml"),
        ("demo", ".", "must end in .yaml; write for example {tmp}/demo.yaml"),
        ("demo", "file/mine.yaml", "{tmp}/file: exists already"),
        ("own.yaml", "mine.yaml", "own.yaml: `copy` is for recipes that ship"),
        ("dmo", "mine.yaml", "did you mean demo?"),
    ],
)
def test_copy_refuses(source, target, message, tmp_path):
    (tmp_path / "file").touch()
    assert message.format(tmp=tmp_path) in refusal("copy", source, tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

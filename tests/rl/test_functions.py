"""Reward functions by name: of the project and of what the recipe requires, and nothing that Python has of itself."""

import sys

import pytest
from demo_runs import letter_e

from lorarlhf.errors import UserError
from lorarlhf.rl.functions import import_function, packages_of


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as the console script starts
    for name in [name for name in sys.modules if name.partition(".")[0] in ("kept", "shown")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "rules.py").write_text("def one(prompts, responses):\n    return [1.0] * len(responses)\n")
    (tmp_path / "shown.py").write_text(
        "import functools\nfrom os import system\nfrom subprocess import Popen\nfrom kept.rules import one\n"
        "from demo_runs import letter_e\nhalf = functools.partial(one)\nnumber = 3\n"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["kept.rules:one", "shown:one", "shown:half"])
def test_functions_of_the_current_folder(project, caplog, name):
    with caplog.at_level("INFO", logger="lorarlhf"):
        assert import_function(name, [])(["?"], ["a"]) == [1.0]
    assert f"ppo.reward_functions: {name} from {project}" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("builtins:exec", "is of Python itself (builtins)"),
        ("subprocess:call", "is of Python itself (subprocess)"),
        ("os.path:join", "is of Python itself (os)"),
        ("__main__:main", "is of Python itself (__main__)"),
        ("shown:system", "is of Python itself (posix)"),
        ("shown:Popen", "is of Python itself (subprocess)"),
        ("numpy:array", "is of the installed package numpy, which the recipe does not name; write requires: [numpy]"),
        ("shown:letter_e", "is of the installed package demo_runs"),
        ("shown:number", "is no function but of type int"),
        ("shown:nothing", "has no attribute 'nothing'"),
        ("no_such:f", "No module named 'no_such'"),
    ],
)
def test_functions_from_elsewhere(project, name, reason):
    with pytest.raises(UserError) as error:
        import_function(name, [])
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_package_that_the_recipe_requires(project):
    assert import_function("demo_runs:letter_e", ["demo_runs"]) is letter_e


@pytest.mark.parametrize(
    ("name", "packages"),
    [("kept.rules:one", []), ("demo_runs:letter_e", ["demo_runs"]), ("shown:letter_e", ["demo_runs"])],
)
def test_what_a_recipe_has_to_require(project, name, packages):
    assert packages_of(name) == packages
    import_function(name, packages)


def test_where_a_function_is_from_is_said_once(project, caplog):
    with caplog.at_level("INFO", logger="lorarlhf"):
        for _ in range(3):
            import_function("kept.rules:one", [])
    assert caplog.text.count("kept.rules:one from") == 1


def test_python_itself_cannot_be_required(project):
    with pytest.raises(UserError, match="of Python itself"):
        import_function("subprocess:call", ["subprocess"])


def test_a_file_of_the_current_folder_does_not_stand_in_for_an_installed_module(project):
    (project / "yaml.py").write_text("def load(prompts, responses):\n    return []\n")
    with pytest.raises(UserError, match="is of the installed package yaml"):
        import_function("yaml:load", [])

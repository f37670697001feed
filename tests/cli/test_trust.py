"""Recipes and runs from elsewhere run no code, whatever command they are given to."""

import io
import shutil
import sys

import pytest
from demo_runs import save_random_adapter, small_recipe
from elsewhere import COMMANDS, FUNCTION, MODULE, REMOTE

from lorarlhf.cli.main import main
from lorarlhf.errors import UserError
from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A current folder with a module whose import leaves a trace."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return folder


def ran(project):
    return (project / "mine.py.ran").exists()


@pytest.fixture
def elsewhere(tmp_path, project):
    """A run that came as an archive and was unpacked here, in the current folder."""
    recipe = small_recipe(tmp_path, 'ppo.reward_functions=["mine:score"]')
    made = Run(tmp_path / "made-by-another")
    with pytest.MonkeyPatch.context() as another:
        another.setenv("XDG_STATE_HOME", str(tmp_path / "state-of-another"))
        made.write_recipe(recipe, "ppo")
    for stage in ("reward", "policy"):
        save_random_adapter(recipe, made, "ppo" if stage == "policy" else stage)
    return shutil.copytree(made.path, project / "unpacked")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_file_from_elsewhere_names(project, elsewhere, tmp_path, monkeypatch, capsys, command):
    recipe = tmp_path / "downloaded.yaml"
    recipe.write_text("extends: demo\n" + FUNCTION)
    before = sorted(project.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["lorarlhf", *command.format(recipe=recipe).split()])
    with pytest.raises(SystemExit) as exit_:
        main()
    said = capsys.readouterr().err
    assert exit_.value.code == 2, said
    assert "ppo.reward_functions: runs code of the modules it names" in said
    assert "leave the code out: [] in its place, there or by --set" in said  # not every command has --set
    assert "--trust" in said
    assert len(said.splitlines()) == 1
    assert not ran(project)
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        "sample --run unpacked --prompts few.jsonl --out pairs.jsonl",
        "chat --run unpacked",
        "score few.jsonl --run unpacked --out scored.jsonl",
        "export --run unpacked --to out --adapter-only",
    ],
)
def test_what_runs_no_function_asks_for_no_trust_in_one(project, elsewhere, monkeypatch, capsys, command):
    (project / "few.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(sys, "argv", ["lorarlhf", *command.split()])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code, capsys.readouterr().err
    assert not ran(project)


def test_a_recipe_whose_functions_are_not_run_still_asks_for_the_models_code(project, tmp_path):
    (tmp_path / "a.yaml").write_text("extends: demo\n" + REMOTE + FUNCTION)
    with pytest.raises(UserError, match=r"model\.trust_remote_code: runs code of the model"):
        load_recipe(str(tmp_path / "a.yaml"), runs_functions=False)
    load_recipe(str(tmp_path / "a.yaml"), sets=["model.trust_remote_code=false"], runs_functions=False)


@pytest.mark.parametrize(("text", "key"), [(FUNCTION, "ppo.reward_functions"), (REMOTE, "model.trust_remote_code")])
def test_where_a_recipe_lies_decides(project, tmp_path, text, key):
    for folder in (project, tmp_path):
        (folder / "a.yaml").write_text("extends: demo\n" + text)
    (project / "b.yaml").write_text(f"extends: {tmp_path / 'a.yaml'}\n")
    (project / "link.yaml").symlink_to(tmp_path / "a.yaml")
    load_recipe("a.yaml")
    for other in (str(tmp_path / "a.yaml"), "../a.yaml", "b.yaml", "link.yaml"):
        with pytest.raises(UserError, match=rf"a.yaml:2: {key}: runs code|link.yaml:2: {key}: runs code"):
            load_recipe(other)
        load_recipe(other, trust=True)
        load_recipe(other, sets=["model.trust_remote_code=false", "ppo.reward_functions=[]"])


def test_a_home_folder_is_no_project(project, monkeypatch):
    (project / "a.yaml").write_text("extends: demo\n" + FUNCTION)
    monkeypatch.setenv("HOME", str(project))
    with pytest.raises(UserError, match="--trust"):
        load_recipe("a.yaml")


def test_what_is_typed_is_the_users_own(tmp_path):
    assert load_recipe("demo", sets=["model.trust_remote_code=true"]).model.trust_remote_code


@pytest.mark.parametrize("code", ['ppo.reward_functions=["mine:score"]', "model.trust_remote_code=true"])
def test_a_run_of_ones_own_is_read_again_from_the_same_folder(project, tmp_path, monkeypatch, code):
    run = Run(tmp_path / "run")
    run.write_recipe(load_recipe("demo", sets=[code]), "ppo")
    assert run.read_recipe(stage="ppo") == run.read_recipe()
    assert Run(run.path.rename(tmp_path / "moved")).read_recipe().seed == 42
    monkeypatch.chdir(tmp_path)  # where the same names may stand for something else
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: .*--trust"):
        Run("moved").read_recipe()
    Run("moved", trust=True).read_recipe()


def test_other_code_in_a_run_of_ones_own_is_not_trusted(project, tmp_path):
    run = Run(tmp_path / "run")
    run.write_recipe(load_recipe("demo", sets=['ppo.reward_functions=["mine:score"]']))
    file = run.path / "recipe.yaml"
    file.write_text(file.read_text().replace("mine:score", "mine:other"))
    with pytest.raises(UserError, match="--trust"):
        run.read_recipe()


def test_where_nothing_can_be_noted_it_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    Run(tmp_path / "run").write_recipe(load_recipe("demo", sets=["model.trust_remote_code=true"]))
    assert "later commands on" in caplog.text

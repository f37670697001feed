"""`lorarlhf export`."""

import sys

import pytest

from lorarlhf.cli.main import main
from lorarlhf.publishing import hub


@pytest.fixture
def lorarlhf(monkeypatch, capsys):
    """`lorarlhf(*arguments)`: exit code, stdout and stderr of the command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lorarlhf", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        output = capsys.readouterr()
        return exit_.value.code or 0, output.out, output.err

    return run


def test_the_last_stage_is_exported_unless_another_is_named(lorarlhf, make_run, tmp_path):
    run = make_run(["sft", "reward", "ppo"])
    code, out, _ = lorarlhf("export", "--run", run.path, "--to", tmp_path / "out", "--adapter-only")
    assert code == 0
    assert "the ppo stage" in out
    assert "-ppo\n" in (tmp_path / "out" / "README.md").read_text()
    code, out, _ = lorarlhf("export", "--run", run.path, "--to", tmp_path / "rm", "--adapter-only", "--stage", "reward")
    assert code == 0
    assert "the reward stage" in out
    assert "-reward\n" in (tmp_path / "rm" / "README.md").read_text()


def test_it_merges_in_the_type_asked_for_and_uploads(lorarlhf, make_run, tmp_path, monkeypatch):
    pushed = []

    def push(folder, repo_id, private):
        pushed.append((folder, repo_id, private))
        return "https://huggingface.co/me/model"

    monkeypatch.setattr(hub, "push_to_hub", push)
    run, out = make_run(["ppo"]), tmp_path / "out"
    arguments = ["--merge", "--dtype", "float16", "--push-to-hub", "me/model", "--private"]
    code, printed, _ = lorarlhf("export", "--run", run.path, "--to", out, *arguments)
    assert code == 0
    assert '"dtype": "float16"' in (out / "config.json").read_text()
    assert pushed == [(out, "me/model", True)]
    assert "uploaded to https://huggingface.co/me/model" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "ppo"], "no adapter there; run `lorarlhf ppo"),
        (["--private"], "--push-to-hub"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(lorarlhf, make_run, tmp_path, arguments, message):
    run = make_run(["reward"])
    code, _, err = lorarlhf("export", "--run", run.path, "--to", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()

"""Runs whose earlier stages are done, and sessions of chat."""

import io
import shutil
import sys

import pytest
from demo_runs import DEMO, read_jsonl, run_with, write_jsonl

from lorarlhf.cli.main import main
from lorarlhf.run import Run
from lorarlhf.stages import chat as chat_stage
from lorarlhf.stages.chat import before_and_after, open_chat
from lorarlhf.stages.sample import load_respondent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose sft and reward stages are done."""
    return run_with(tmp_path_factory.mktemp("finished"), ("sft", "reward"))


@pytest.fixture
def run(finished, tmp_path):
    """`run("reward")`: a fresh run with the stages named done."""

    def make(*stages, name="run"):
        for stage in stages:
            shutil.copytree(finished.stage(stage), tmp_path / name / stage)
        return Run(tmp_path / name)

    return make


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory):
    """A run with all three stages."""
    return run_with(tmp_path_factory.mktemp("chat"), ("sft", "reward", "ppo"))


@pytest.fixture(scope="module")
def loaded(chat_run):
    """Backbone and roles of the run, loaded once: nothing here trains them."""
    return load_respondent(before_and_after(chat_run), chat_run.read_recipe().data, chat_run.stage("reward"), False)


@pytest.fixture
def at_once(monkeypatch, loaded):
    """Whoever opens a chat with the run gets what is loaded already."""
    monkeypatch.setattr(chat_stage, "load_respondent", lambda *args: loaded)


@pytest.fixture
def chat(chat_run, tmp_path, at_once):
    """A session with the run's policy."""
    session = open_chat(before_and_after(chat_run), tmp_path / "chat", seed=1)
    yield session
    session.close()


@pytest.fixture
def piped(monkeypatch, capsys):
    """`piped(lines, *arguments)`: exit code, answers and notes."""

    def call(lines: str | bytes, *arguments):
        content = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["lorarlhf", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def prompts(request, tmp_path):
    """A file with as many of the demo's held-out prompts as `PROMPTS` of the module says."""
    rows = read_jsonl(DEMO / "prompts_test.jsonl")[: request.module.PROMPTS]
    return write_jsonl(tmp_path / "prompts.jsonl", rows)

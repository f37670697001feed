"""What must not leave with an export, nor stand in any file of a run: tokens, paths, files of this computer."""

import io
import json
import os
import shutil
import sys
import threading
import webbrowser

import pytest
import torch
from bad_calls import in_process
from safetensors.torch import save_file

from lorarlhf.errors import UserError
from lorarlhf.loopback import open_browser
from lorarlhf.publishing.folder import MARKER, exported_files, write_marker, written_beside
from lorarlhf.recipe.shipped import resolve_path
from lorarlhf.run import Run
from lorarlhf.stages.export import export_run
from lorarlhf.stages.pipeline import run_recipe

CANARY = "hf_canaryCANARYcanaryCANARYcanaryCANARY"


def files_with(folder, text):
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_no_token_in_any_file_and_no_folder_in_an_export(tmp_path, monkeypatch):
    from demo_runs import small_recipe

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, CANARY)
    home = tmp_path / "home-of-alice"
    shutil.copytree(resolve_path("shipped:demo/model"), home / "model")
    sets = [f"model.name={home / 'model'}", "stages=[reward,ppo,evaluate,report,export]"]
    recipe = small_recipe(home, *sets)
    run_recipe(recipe, home / "run")
    export_run(Run(home / "run"), home / "adapter", "ppo", merge=False)
    run, data = home / "run", home / "data"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Do you have lemons?\n/compare\na\n"))
    for call in (
        f"score {data}/preferences_test.jsonl --run {run} --out {home}/scored.jsonl",
        f"sample --run {run} --prompts {data}/prompts_test.jsonl --out {home}/pairs.jsonl",
        f"sample --run {run} --best-of 2 --prompts {data}/prompts_test.jsonl --out {home}/best.jsonl",
        f"evaluate --run {run} --stage reward",
        f"chat --run {run} --out {home}/chat",
        f"data convert {data}/preferences.jsonl {home}/rows.jsonl",
        f"recipes copy --full demo {home}/mine.yaml",
    ):
        code, said = in_process(call.split())
        assert code == 0, said
    assert files_with(home, CANARY) == []
    assert files_with(home / "run" / "export", "home-of-alice") == []
    assert files_with(home / "adapter", "home-of-alice") == []
    for folder in (home / "run" / "export", home / "adapter"):
        assert set(exported_files(folder)) == {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_a_link_in_a_run_carries_nothing_out(make_run, tmp_path, name):
    run = make_run(["ppo"])
    file = run.stage("ppo") / name
    file.unlink(missing_ok=True)
    (tmp_path / "key").write_text("-----BEGIN PRIVATE KEY-----")
    file.symlink_to(tmp_path / "key")
    with pytest.raises(UserError, match=f"{name}: is a link, and an export takes none"):
        export_run(run, tmp_path / "out", "ppo", merge=False)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "out"
    with written_beside(folder) as part:
        (part / "README.md").write_text("# A model")
        write_marker(part, {})
    return folder


@pytest.mark.parametrize(
    "marker",
    [
        '{"files": ["README.md", "precious"]}',
        '{"files": {"README.md": "0", "precious": "0"}}',
        "{}",
        "[]",
        "not JSON",
        "[" * 100_000,
    ],
)
def test_a_marker_alone_lets_nothing_be_overwritten(exported, marker):
    (exported / "precious").write_text("mine")
    (exported / MARKER).write_text(marker)
    with pytest.raises(UserError), written_beside(exported):
        pass
    assert (exported / "precious").read_text() == "mine"


def test_an_export_is_replaced_but_no_edited_one(exported):
    with written_beside(exported) as part:
        write_marker(part, {})
    assert json.loads((exported / MARKER).read_text())["files"] == {}
    (exported / "README.md").write_text("# Mine")
    with pytest.raises(UserError, match=r"README.md is not as an earlier export wrote it"), written_beside(exported):
        pass


def test_a_link_is_no_place_for_an_export(exported, tmp_path):
    (tmp_path / "link").symlink_to(exported)
    with pytest.raises(UserError, match="is a link"), written_beside(tmp_path / "link"):
        pass
    assert (exported / "README.md").exists()


def test_the_secret_of_a_page_is_no_argument_of_the_browser(monkeypatch):
    opened, done = [], threading.Event()
    monkeypatch.setattr(webbrowser, "open", lambda address: (opened.append(address), done.set()))
    open_browser("http://127.0.0.1:8000/secret&token/")
    assert done.wait(5)
    (address,) = opened
    assert address.startswith("file:///")
    assert "secret" not in address
    from pathlib import Path

    page = Path(address.removeprefix("file://"))
    assert 'url=http://127.0.0.1:8000/secret&amp;token/"' in page.read_text()
    assert page.parent.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_weights_can_be_read_by_whoever_can_read_the_rest(tmp_path):
    with written_beside(tmp_path / "to") as part:
        save_file({"w": torch.zeros(2)}, part / "model.safetensors")
        part.joinpath("model.safetensors").chmod(0o600)  # as safetensors leaves it
        write_marker(part, {})
    modes = {path.stat().st_mode for path in (tmp_path / "to").iterdir()}
    assert len(modes) == 1
    assert exported_files(tmp_path / "to") == [MARKER, "model.safetensors"]

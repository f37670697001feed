"""Files that are whole or as they were."""

import os
from pathlib import Path

import pytest

from lorarlhf import files
from lorarlhf.errors import UserError
from lorarlhf.files import write_file, written_file, written_into
from lorarlhf.json_file import read_object
from lorarlhf.manifest import drop_oldest


def test_a_file_takes_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_file(path, "one")
    write_file(path, b"two")
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_what_fails_leaves_the_file_before_and_nothing_else(tmp_path):
    path = tmp_path / "summary.json"
    write_file(path, "one")

    def fail():
        with written_file(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("name", ["summary.json", "summary.json.part"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("someone's")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(elsewhere)
    write_file(run / "summary.json", "ours")
    assert elsewhere.read_text() == "someone's"
    assert not (run / "summary.json").is_symlink()
    assert (run / "summary.json").read_text() == "ours"


def test_half_a_surrogate_pair_is_written_as_json_has_it(tmp_path):
    write_file(tmp_path / "row.json", '"\ud800"')
    assert (tmp_path / "row.json").read_bytes() == b'"\\ud800"'


def test_files_of_a_folder_come_together_and_the_last_one_last(tmp_path, monkeypatch):
    order = []
    real = files.os.replace
    monkeypatch.setattr(files.os, "replace", lambda old, new: order.append(new.name) or real(old, new))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "summary.json").write_text("of before")
    with written_into(folder, last="config.json") as part:
        (part / "config.json").write_text("{}")
        (part / "weights").write_text("w")
        (part / "templates").mkdir()
        (part / "templates" / "one.jinja").write_text("t")
        assert not (folder / "config.json").exists()
    assert order == ["one.jinja", "weights", "config.json"]
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["config.json", "summary.json", "templates/one.jinja", "weights"]
    assert not (folder / ".part").exists()


def test_a_folder_that_is_a_link_is_replaced(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "best").symlink_to(elsewhere)
    with written_into(tmp_path / "best", last="config.json") as part:
        (part / "config.json").write_text("{}")
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "best" / "config.json").is_file()


@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir], ids=["zero", "pipe", "folder"]
)
def test_what_is_no_file_is_not_read_for_ever(tmp_path, make):
    make(tmp_path / "summary.json")
    with pytest.raises(UserError, match=r"summary\.json: is not a file"):
        read_object(tmp_path / "summary.json")


def test_a_link_among_the_oldest_checkpoints_goes_and_what_it_leads_to_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs").touch()
    (tmp_path / "checkpoint-1").symlink_to(elsewhere)
    for number in (2, 3):
        (tmp_path / f"checkpoint-{number}").mkdir()
    drop_oldest(tmp_path, keep=2)
    assert not (tmp_path / "checkpoint-1").is_symlink()
    assert (elsewhere / "theirs").exists()

"""Files that are whole or as they were."""

import pytest

from lorarlhf import files
from lorarlhf.files import write_file, written_file, written_into


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

"""The file of labels: append-only, fsynced, and whole whatever happens to the process."""

import json
import os

import pytest

from lorarlhf.errors import UserError
from lorarlhf.preferences.labels import Label, LabelFile, read_labels


def label(pair_id="p0", annotator="ann", choice="a", **more):
    fields = {
        "left": "a",
        "repeat": False,
        "seconds": 2.5,
        "strength": None,
        "comment": None,
        "time": "2026-01-01",
        "seed": 0,
    }
    return Label(pair_id=pair_id, annotator=annotator, choice=choice, **fields | more)


@pytest.fixture
def file(labels_path):
    file = LabelFile(labels_path)
    yield file
    file.close()


def test_one_line_a_label_on_disk_at_once(file, labels_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(labels_path.read_text()))
    file.append(label(comment="naïve 👍\nsecond line", strength=2))
    file.append(label("p1", choice="both_bad"))
    lines = labels_path.read_text().splitlines()
    assert synced == [lines[0] + "\n", "\n".join(lines) + "\n"]
    without = label(comment="naïve 👍\nsecond line", strength=2).model_dump(exclude={"criteria"})
    assert json.loads(lines[0]) == without, "as lines were before there were criteria"
    file.append(label("p2", criteria={"helpful": "a", "honest": "tie"}))
    assert [given.criteria for given in read_labels(labels_path)] == [{}, {}, {"helpful": "a", "honest": "tie"}]
    assert list(json.loads(lines[0])) == [
        *("pair_id", "annotator", "choice", "left", "repeat", "seconds", "strength", "comment", "time", "seed")
    ]


def test_undo_appends(file, labels_path):
    for given in (label("p0"), label("p1"), label("p0", repeat=True), label("p0", annotator="bob")):
        file.append(given)
    before = labels_path.read_bytes()
    assert file.undo("ann").repeat
    assert file.undo("ann").pair_id == "p1"
    assert labels_path.read_bytes().startswith(before)
    assert labels_path.read_bytes().count(b"\n") == 6
    assert list(read_labels(labels_path)) == list(file.labels) == [label("p0"), label("p0", annotator="bob")]
    assert [file.undo("ann").pair_id, file.undo("ann"), file.undo("eve")] == ["p0", None, None]


def test_a_label_given_again_after_undo_stands(file):
    file.append(label("p0"))
    file.undo("ann")
    file.append(label("p0", choice="b"))
    assert [given.choice for given in file.labels] == ["b"]


def test_of_two_labels_by_one_person_the_later_stands(file):
    for given in (label("p0"), label("p1"), label("p0", choice="b")):
        file.append(given)
    assert [(given.pair_id, given.choice) for given in file.labels] == [("p1", "a"), ("p0", "b")]


def test_any_torn_end_loads_and_is_cut_off(labels_path):
    whole = [json.dumps(label(pair).model_dump(), ensure_ascii=False).encode() + b"\n" for pair in ("p0", "é")]
    undo = b'{"undo": "p0", "annotator": "ann", "repeat": false, "time": "t"}\n'
    for torn in (whole[1], undo):
        for cut in range(len(torn) - 1):
            labels_path.write_bytes(whole[0] + torn[:cut])
            assert [given.pair_id for given in read_labels(labels_path)] == ["p0"]
            assert labels_path.read_bytes() == whole[0] + torn[:cut]
            LabelFile(labels_path).close()
            assert labels_path.read_bytes() == whole[0]


def test_a_last_line_that_only_lacks_its_newline_counts(labels_path):
    labels_path.write_text(json.dumps(label("p0").model_dump()))
    file = LabelFile(labels_path)
    file.append(label("p1"))
    file.close()
    assert [given.pair_id for given in read_labels(labels_path)] == ["p0", "p1"]
    assert labels_path.read_bytes().count(b"\n") == 2


def test_a_failed_write_leaves_no_trace(file, labels_path, monkeypatch):
    file.append(label("p0"))
    before = labels_path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            file.append(label("p1"))
        with pytest.raises(OSError, match="No space"):
            file.undo("ann")
    assert labels_path.read_bytes() == before
    assert [given.pair_id for given in file.labels] == ["p0"]
    file.append(label("p1"))
    assert [given.pair_id for given in read_labels(labels_path)] == ["p0", "p1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("my notes, not to be cut off", ":1: not a label (not valid JSON)"),
        ('{"prompt": "Q?"}\n', ":1: not a label (pair_id: Field required)"),
        ("{LABEL}\n{BAD}\n{LABEL}\n", ":2: not a label (choice: Input should be"),
        ('{LABEL}\n{"pair_id": "p\n{LABEL}\n', ":2: not a label (not valid JSON)"),
        ("{LABEL}\n\xff\n", ":2: not a label (not UTF-8)"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(content, message, labels_path):
    good = label().model_dump()
    content = content.replace("{LABEL}", json.dumps(good)).replace("{BAD}", json.dumps(good | {"choice": "c"}))
    labels_path.write_bytes(content.encode("latin-1"))
    for read in (read_labels, LabelFile):
        with pytest.raises(UserError) as error:
            read(labels_path)
        assert message in str(error.value)
    assert labels_path.read_bytes() == content.encode("latin-1")


def test_one_process_at_a_time(file, labels_path):
    pytest.importorskip("fcntl")
    with pytest.raises(UserError, match="another `lorarlhf collect` writes to it"):
        LabelFile(labels_path)
    file.close()
    LabelFile(labels_path).close()


def test_places_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        LabelFile(tmp_path / "file" / "labels.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "none.jsonl")

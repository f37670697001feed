"""Whatever is sent to the labelling page, it answers, in few words, and writes labels alone."""

import json
import os
import random
import stat

import pytest
from starlette.testclient import TestClient

from lorarlhf.errors import UserError
from lorarlhf.preferences.labels import LabelFile, read_labels
from lorarlhf.preferences.pairs import append_pair, make_pair
from lorarlhf.preferences.server import make_app

ROUNDS = 600
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW")
PATHS = (
    *("", "page.js", "style.css", "index.html", "api", "api/", "api/next", "api/label", "api/undo", "api/disputed"),
    *("../token/", "..%2f..%2fetc%2fpasswd", "%00", "page.js%00", "api/next?annotator=", "api/next?annotator=%ff%00"),
    *("api/next?annotator=" + "a" * 5000, "//etc/passwd", "api//next", ";", "api/next#x", "%", "\u202e"),
)
TYPES = ("application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data; boundary=x")
VALUES = (
    *(None, True, -1, 0, 3, 10**30, 1e400, -0.0, "", "left", "both_bad", "\x00", "\u2028", "a" * 3000, [], {}, [[]]),
    *({"a": 1}, "p0", "p1", "ann", "<script>alert(1)</script>", "\u202e", "=1+1"),
)
BROKEN = (b"", b"{", b"[" * 20_000, b"\xff\xfe", b'{"annotator": "\\ud800"}', b"null", b"1" * 5000, b'{"a":1,"a":2}')


def body(draw, task):
    if draw.random() < 0.2:
        return draw.choice(BROKEN)
    answer = {"task": task["id"], "pair_id": task["pair_id"], "choice": "left", "seconds": 1.0, "annotator": "ann"}
    for _ in range(draw.randrange(4)):
        answer[draw.choice([*answer, "strength", "comment", "more"])] = draw.choice(VALUES)
    return json.dumps(answer).encode()


def test_all_routes(start_labelling, labels_path):
    app = make_app(start_labelling(50), "token", None, "login")
    client = TestClient(app, base_url="http://127.0.0.1:8000/token/", follow_redirects=False)
    draw, statuses = random.Random(11), set()
    for _ in range(ROUNDS):
        task = client.get("api/next", params={"annotator": "ann"}).json()["task"]
        headers = {"content-type": draw.choice(TYPES)}
        if draw.random() < 0.1:
            headers["host"] = draw.choice(["evil", "127.0.0.1:8000@evil", "localhost"])
        path = draw.choice(PATHS) if draw.random() < 0.5 else draw.choice(["api/label", "api/undo", "api/reopen"])
        method = draw.choice(METHODS) if draw.random() < 0.5 else "POST"
        reply = client.request(method, path, content=body(draw, task), headers=headers)  # raises what the app does
        statuses.add(reply.status_code)
        assert reply.status_code < 500
        assert reply.headers["x-content-type-options"] == "nosniff"
        if reply.status_code >= 400:
            assert len(reply.text) < 500
            assert "root:" not in reply.text
    assert statuses >= {200, 400, 403, 404, 405, 409, 415}, "the draws reach all that can be answered"
    assert set(os.listdir(labels_path.parent)) <= {labels_path.name, "pairs.jsonl"}
    assert all(label.annotator for label in read_labels(labels_path)), "the file is whole"


def test_the_files_are_their_owners(tmp_path):
    LabelFile(tmp_path / "labels.jsonl").close()
    append_pair(tmp_path / "pairs.jsonl", make_pair("Q?", "a", "b"))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("target", ["/dev/full", "/dev/zero", "somebody-else's"])
def test_a_link_is_not_written_to(tmp_path, target):
    theirs = tmp_path / target
    if not theirs.exists():
        theirs.write_text("")
    for name in ("labels.jsonl", "pairs.jsonl"):
        (tmp_path / name).symlink_to(theirs)
    with pytest.raises(UserError, match=r"labels.jsonl: cannot be written: is a link; choose another place"):
        LabelFile(tmp_path / "labels.jsonl")
    with pytest.raises(OSError, match="is a link"):
        append_pair(tmp_path / "pairs.jsonl", make_pair("Q?", "a", "b"))
    if theirs.is_file():
        assert theirs.read_text() == ""


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero"])
def test_a_device_is_no_file_of_labels(device):
    from pathlib import Path

    with pytest.raises(UserError, match="not a file"):
        LabelFile(Path(device))
    with pytest.raises(UserError, match="not a file"):
        read_labels(Path(device))


def test_a_pipe_is_no_file_of_labels(tmp_path):
    os.mkfifo(tmp_path / "labels.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        LabelFile(tmp_path / "labels.jsonl")

"""The page's interface, who may use it, and `lorarlhf collect` itself."""

import json
import shlex
import signal
import socket
import sys
import urllib.request

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from lorarlhf.cli.collect import collect_app
from lorarlhf.errors import UserError
from lorarlhf.preferences.briefing import commands_after
from lorarlhf.preferences.labels import read_labels
from lorarlhf.preferences.pairs import Pair
from lorarlhf.preferences.server import FILES, make_app

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def connect(start_labelling):
    """`connect(pairs, annotator)`: a client of a server under /token/."""

    def client(pairs=5, annotator=None):
        app = make_app(start_labelling(pairs), "token", annotator, "login")
        return TestClient(app, base_url=f"{HERE}/token/", follow_redirects=False)

    return client


def label(reply, choice="left", **more):
    task = reply.json()["task"]
    return {
        "annotator": "ann",
        "task": task["id"],
        "pair_id": task["pair_id"],
        "choice": choice,
        "seconds": 2.0,
        **more,
    }


def test_label_and_undo(connect):
    client = connect()
    first = client.get("api/next", params={"annotator": "ann"})
    second = client.post("api/label", json=label(first, strength=3, comment="because"))
    assert second.json()["progress"] | {"seconds": None} == {
        "done": 1,
        "total": 5,
        "seconds": None,
        "repeats": 0,
        "consistent": 0,
        "can_undo": True,
        "disputed": 0,
        "elsewhere": 0,
    }
    assert second.json()["task"]["pair_id"] == "p1"
    given = {"strength": 3, "comment": "because", "criteria": {}}
    assert second.json()["saved"] == given
    undone = client.post("api/undo", json={"annotator": "ann"}).json()
    assert undone["task"] == first.json()["task"]
    assert undone["undone"] == given
    nothing = client.post("api/undo", json={"annotator": "ann"})
    assert (nothing.status_code, nothing.text) == (409, "There is nothing to undo.")


def test_label_to_the_end(connect, labels_path):
    client = connect(3)
    reply = client.get("api/next", params={"annotator": "ann"})
    while reply.json()["task"]:
        reply = client.post("api/label", json=label(reply, "tie", strength=2))
        assert reply.json()["saved"] == {"strength": None, "comment": None, "criteria": {}}
    assert [given.choice for given in read_labels(labels_path)] == ["tie"] * 3


def test_the_second_tab_is_told_and_moves_on(connect, labels_path):
    client = connect()
    seen = client.get("api/next", params={"annotator": "ann"})
    assert client.post("api/label", json=label(seen)).status_code == 200
    refused = client.post("api/label", json=label(seen, "right"))
    assert (refused.status_code, refused.text) == (409, "This pair was answered already, perhaps in another tab.")
    assert client.get("api/next", params={"annotator": "ann"}).json()["task"]["pair_id"] == "p1"
    assert len(read_labels(labels_path)) == 1


def test_the_page_does_not_learn_which_response_is_which(connect):
    client = connect([Pair("p", [{"role": "user", "content": "Q?"}], "one", "two", "model x")])
    task = client.get("api/next", params={"annotator": "ann"}).json()["task"]
    assert set(task) == {"id", "pair_id", "prompt", "left", "right"}
    assert task["prompt"] == [{"role": "user", "content": "Q?", "markdown": None}]
    assert {task["left"][0]["content"], task["right"][0]["content"]} == {"one", "two"}


def test_what_is_disputed_does_not_say_either_and_is_opened_again(connect):
    client = connect([Pair("p", "Q?", "one", "two", "model x / model y")])
    for who, choice in (("ann", "left"), ("bob", "tie")):
        seen = client.get("api/next", params={"annotator": who})
        client.post("api/label", json=label(seen, choice) | {"annotator": who})
    [dispute] = client.get("api/disputed", params={"annotator": "ann"}).json()
    assert dispute.pop("votes") == {"left": 1, "right": 0, "tie": 1}
    assert set(dispute) == {"id", "pair_id", "prompt", "left", "right"}
    reply = client.post("api/reopen", json={"annotator": "ann", "pair_id": "p"}).json()
    assert (reply["task"], reply["undone"]["criteria"]) == (dispute, {})
    refused = client.post("api/reopen", json={"annotator": "ann", "pair_id": "none"})
    assert (refused.status_code, refused.text) == (409, "There is no such pair.")


def test_who_labels(connect, labels_path):
    client = connect()
    assert client.get("api/next").json() == {"annotator": None, "suggestion": "login"}
    assert client.get("api/next", params={"annotator": " Ann  B "}).json()["annotator"] == "Ann B"
    assert client.get("api/next", params={"annotator": ""}).status_code == 400
    fixed = connect(annotator="bob")
    reply = fixed.get("api/next", params={"annotator": "ann"})
    assert (reply.json()["annotator"], reply.json()["asks"]) == ("bob", False)
    fixed.post("api/label", json=label(reply))
    assert [given.annotator for given in read_labels(labels_path)] == ["bob"]


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"choice": "a"}, 400, "choice: "),
        ({"seconds": -1}, 400, "seconds: "),
        ({"strength": 4}, 400, "strength: "),
        ({"comment": "x" * 2001}, 400, "comment: "),
        ({"more": 1}, 400, "more: "),
        ({"annotator": "\n"}, 400, "a name has"),
        ({"criteria": {"honest": "a"}}, 400, "criteria: honest: "),
        ({"criteria": {"honest": "left"}}, 400, "criteria: not those asked for"),
        ({"comment": "x" * 70_000}, 413, "Too long"),
        ({"task": "0"}, 409, "answered already"),
        ({"pair_id": "none"}, 409, "answered already"),
    ],
)
def test_bad_answers(change, status, reason, connect, labels_path):
    client = connect()
    reply = client.post("api/label", json=label(client.get("api/next", params={"annotator": "ann"})) | change)
    assert (reply.status_code, reply.text.startswith(reason) or reason in reply.text) == (status, True)
    assert labels_path.read_bytes() == b""


def test_only_json_is_read(connect):
    client = connect()
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post("api/undo", content="{}", headers={"content-type": content_type}).status_code == 415
    assert (
        client.post("api/label", content="[" * 60_000, headers={"content-type": "application/json"}).status_code == 400
    )


def test_a_full_disk_is_reported_and_the_pair_stays(connect, monkeypatch):
    client = connect()
    seen = client.get("api/next", params={"annotator": "ann"})

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        reply = client.post("api/label", json=label(seen))
    assert (reply.status_code, reply.text) == (507, "Not saved: No space left on device.")
    assert client.post("api/label", json=label(seen)).status_code == 200


PATHS = ["", "page.js", "style.css", "api/next", "api/briefing", "none"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("base", "headers"),
    [
        ("http://127.0.0.1:8000/tokem/", {}),
        ("http://127.0.0.1:8000/", {}),
        ("http://127.0.0.1:8000/token%00/", {}),
        ("http://evil.example:8000/token/", {}),
        ("http://127.0.0.1.evil.example:8000/token/", {}),
        ("http://192.168.0.2:8000/token/", {}),
        ("http://127.0.0.1:8000/token/", {"host": ""}),
        ("http://127.0.0.1:8000/token/", {"host": "127.0.0.1:8000@evil.example"}),
        ("http://127.0.0.1:8000/token/", {"host": "127.0.0.1:8000@evil.example:80"}),
        ("http://127.0.0.1:8000/token/", {"host": "127.0.0.1:"}),
        ("http://127.0.0.1:8000/token/", {"host": "localhost:8000\t"}),
        ("http://127.0.0.1:8000/token/", {"host": "LOCALHOST.evil.example"}),
        ("http://127.0.0.1:8000/token/", {"origin": "http://evil.example"}),
        ("http://127.0.0.1:8000/token/", {"origin": "http://127.0.0.1:9000"}),
        ("http://127.0.0.1:8000/token/", {"origin": "https://127.0.0.1:8000"}),
        ("http://127.0.0.1:8000/token/", {"origin": "null"}),
    ],
)
def test_strangers_are_refused(base, headers, path, connect):
    reply = connect().get(f"{base}{path}", headers=headers)
    assert reply.status_code == 403
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_strangers_write_nothing(connect, labels_path):
    client = connect()
    body = label(client.get("api/next", params={"annotator": "ann"}))
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        assert client.post("api/label", json=body, headers=headers).status_code == 403
    assert client.post(f"{HERE}/tokem/api/label", json=body).status_code == 403
    assert labels_path.read_bytes() == b""
    assert client.post("api/label", json=body, headers={"origin": HERE}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:1234", "localhost"])
def test_loopback_names_are_welcome(host, connect):
    reply = connect().get("", headers={"host": host, "origin": f"http://{host}"})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize("path", PATHS)
def test_security_headers(path, connect):
    headers = connect().get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "set-cookie" not in headers


def test_the_page_asks_nothing_of_others(connect):
    client = connect()
    for name in FILES:
        text = client.get(name).text
        assert "//" not in "\n".join(line.split("// ")[0] for line in text.splitlines()), "an address, or a comment"
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            " onclick=",
        ):
            assert forbidden not in text


# The command


def test_serve_and_stop(run_collect, write_pairs, labels_path):
    running = run_collect("--pairs", write_pairs(3), "--out", labels_path, "--annotator", "ann")
    assert running.printed[0] == f"collect: 3 pairs; 0 labels in {labels_path} so far"
    with urllib.request.urlopen(f"{running.link}api/next", timeout=10) as reply:
        task = json.load(reply)["task"]
    body = {"task": task["id"], "pair_id": task["pair_id"], "choice": "left", "seconds": 1}
    request = urllib.request.Request(
        f"{running.link}api/label", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=10).close()
    assert running.stop(signal.SIGINT) == f"collect: 1 label in {labels_path}\n"
    assert running.process.returncode == 0


def test_no_reply_waits_for_an_acknowledgement(run_collect, write_pairs, labels_path):
    running = run_collect("--pairs", write_pairs(3), "--out", labels_path, "--annotator", "ann")
    with httpx.Client(base_url=running.link) as client:
        seconds = [client.get("api/next").elapsed.total_seconds() for _ in range(30)]
    assert min(seconds[10:]) < 0.03  # 0.04 is how long a kernel holds one back


def refusal(*args):
    error = CliRunner().invoke(collect_app, [str(arg) for arg in args]).exception
    assert isinstance(error, UserError), error
    return str(error)


def test_the_port_may_be_taken(write_pairs, labels_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal("--no-open", "--pairs", write_pairs(1), "--out", labels_path, "--port", port)
    assert message.startswith(f"--port {port}: Address already in use; choose another")


def test_refusals(write_pairs, labels_path, tmp_path):
    pairs = write_pairs(1)
    assert "--pairs: missing" in refusal("--out", labels_path)
    assert "--out: missing" in refusal("--pairs", pairs)
    assert "--annotator: a name has" in refusal("--pairs", pairs, "--out", labels_path, "--annotator", " ")
    assert "--criteria: write different" in refusal("--pairs", pairs, "--out", labels_path, "--criteria", "a,,b")
    assert "no such file" in refusal("--pairs", tmp_path / "none.jsonl", "--out", labels_path)
    assert "must end in .jsonl" in refusal("--pairs", pairs, "--out", tmp_path / "labels.txt")
    assert not labels_path.exists()
    assert f"{pairs}:1: not a label" in refusal("--pairs", pairs, "--out", pairs)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"\xff\xfe", "not UTF-8"), (b" \n", "empty"), (b"x" * 300_000, "more than 256 KiB")],
)
def test_a_guideline_that_cannot_be_shown(content, reason, write_pairs, labels_path, tmp_path):
    guide = tmp_path / "guide.md"
    if content is not None:
        guide.write_bytes(content)
    message = refusal("--no-open", "--pairs", write_pairs(1), "--out", labels_path, "--guide", guide)
    assert message.startswith(f"--guide {guide}: ")
    assert reason in message
    assert not labels_path.exists()


def test_what_to_type_next_overwrites_nothing_and_can_be_typed(tmp_path):
    folder = tmp_path / "two words"
    folder.mkdir()
    (folder / "prefs.jsonl").touch()
    export, reward = map(shlex.split, commands_after(folder / "pairs.jsonl", folder / "labels.jsonl"))
    rows = str(folder / "prefs-2.jsonl")
    assert export[:4] == ["lorarlhf", "collect", "export", str(folder / "labels.jsonl")]
    assert export[4:] == ["--pairs", str(folder / "pairs.jsonl"), "--out", rows]
    assert reward[reward.index("--dataset") + 1] == rows


def test_without_the_extra(monkeypatch, write_pairs, labels_path):
    for module in ("lorarlhf.stages.collect", "lorarlhf.preferences.server"):  # they may have been imported with it
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    message = refusal("--pairs", write_pairs(1), "--out", labels_path)
    assert message == "the page needs starlette.applications; install it with: pip install 'lorarlhf[collect]'"

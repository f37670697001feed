"""Data sets of the Hub: a small Hub of our own over HTTP, and folders laid out like a data set of the Hub."""

import json
import os
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from lorarlhf.data.sources import iter_rows, splits_of
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Source

COMMIT = "a" * 40
CARD = """---
configs:
- config_name: helpful
  data_files: [{split: train, path: helpful/train.jsonl}, {split: test, path: helpful/test.jsonl}]
- config_name: harmless
  data_files: [{split: train, path: harmless/train.jsonl}]
---
"""


def rows(name):
    return [{"prompt": f"{name} {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(3)]


def lines(name):
    return "".join(json.dumps(row) + "\n" for row in rows(name)).encode()


FILES = {
    "README.md": CARD.encode(),
    **{f"{name}.jsonl": lines(name) for name in ("helpful/train", "helpful/test", "harmless/train")},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, content in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(tmp_path / "data")


def test_a_folder_laid_out_like_a_data_set_of_the_hub(folder):
    helpful = Source(source=folder, name="helpful")
    assert splits_of(helpful) == ["train", "test"]
    assert [row for _, row in iter_rows(helpful, "test")] == rows("helpful/test")
    place, row = next(iter_rows(Source(source=folder, data_dir="harmless"), "train"))
    assert (place, row) == (f"{folder} (train): row 1", rows("harmless/train")[0])
    with pytest.raises(UserError, match=r"has the configurations helpful, harmless; name one in the recipe"):
        splits_of(folder)
    with pytest.raises(UserError, match=r"has the configurations helpful, harmless, and no other; name one"):
        splits_of(Source(source=folder, name="other"))
    with pytest.raises(UserError, match=r"cannot read this folder \(The directory at .*nowhere"):
        splits_of(Source(source=folder, data_dir="nowhere"))
    with pytest.raises(UserError, match=r"is a folder, and has no revision 'v1'"):
        splits_of(Source(source=folder, revision="v1"))


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's API that `datasets` asks for a public data set, `owner/pairs`."""

    def __init__(self, asked, *args):
        self.asked = asked
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.asked.append((self.command, path))
        _, _, file = path.partition("/datasets/owner/pairs/resolve/")[2].partition("/")
        if path.startswith("/api/datasets/owner/pairs"):
            _, is_tree, below = path.partition("/tree/")
            self._json(self._tree(below.partition("/")[2]) if is_tree else self._about())
        elif file in FILES:
            self._answer(200, FILES[file], ETag=f'"{hash(file)}"')
        else:
            self._answer(404, b"{}", **{"X-Error-Code": "EntryNotFound" if file else "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        paths = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        self._json([self._entry(path) for path in paths if path in FILES])

    def _about(self):
        about = {"_id": "1", "id": "owner/pairs", "sha": COMMIT, "private": False, "gated": False, "disabled": False}
        return about | {"downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in FILES]}

    def _tree(self, below):
        inside = [name for name in FILES if name.startswith(f"{below}/" if below else "")]
        depth = below.count("/") + 1 if below else 0
        names = dict.fromkeys("/".join(name.split("/")[: depth + 1]) for name in inside)
        return [
            self._entry(name) if name in FILES else {"type": "directory", "path": name, "oid": "0" * 40}
            for name in names
        ]

    def _entry(self, name):
        return {"type": "file", "path": name, "size": len(FILES[name]), "oid": "0" * 40}

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _answer(self, code, body, **headers):
        self.send_response(code)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.mark.slow
def test_fetched_once_and_there_again_without_network(tmp_path):
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, asked))
    Thread(target=server.serve_forever, daemon=True).start()
    own = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
    taken = {key: value for key, value in os.environ.items() if "HF_" not in key and "proxy" not in key.lower()}

    def inspect(source, **more):
        command = [sys.executable, "-m", "lorarlhf", "data", "inspect", source]
        done = subprocess.run(command, env=taken | own | more, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    for part, files in (("name: helpful", "2 files"), ("data_dir: harmless", "1 file")):
        output = inspect(f"{{source: owner/pairs, {part}}}")
        assert f"owner/pairs: fetching 0.0 MiB of data in {files}, once, to " in output
        assert "3, which hold 3 comparisons" in output
    asked.clear()
    assert "fetching" not in inspect("{source: owner/pairs, name: helpful}")
    assert not [path for command, path in asked if command == "GET" and path.endswith(".jsonl")], "fetched again"
    server.shutdown()
    server.server_close()
    said = f"owner/pairs: the Hub cannot be reached: commit {COMMIT}, fetched before, is taken"
    for source in ("name: helpful", "data_dir: harmless", "name: helpful, revision: main"):
        output = inspect(f"{{source: owner/pairs, {source}}}", HF_HUB_OFFLINE="1")
        assert said in output
        assert "3, which hold 3 comparisons" in output
    assert said in inspect("{source: owner/pairs, name: helpful}"), "the Hub is down"
    output = inspect("{source: owner/pairs, name: helpful, revision: v2}", HF_HUB_OFFLINE="1")
    assert f"v2 is not known to be among the commits that were fetched before: {COMMIT}; go online" in output
    assert "from which it was not fetched before" in inspect("owner/other", HF_HUB_OFFLINE="1")

"""Requests that nobody's browser sends, to the labelling page and to the report: see `tests/page_probes.py`."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from random import Random

from elsewhere import changes_outside
from page_probes import draw_request, wrong_with_reply
from starlette.testclient import TestClient

from fault_parts.tally import Tally, Task
from lorarlhf.preferences.labelling import Labelling
from lorarlhf.preferences.labels import LabelFile, read_labels
from lorarlhf.preferences.pairs import Pair
from lorarlhf.preferences.server import make_app as make_labelling_page
from lorarlhf.recipe.load import load_recipe
from lorarlhf.reporting.server import make_app as make_report
from lorarlhf.run import Run
from lorarlhf.stages.report import read_runs

HERE = "http://127.0.0.1:8000/token/"
HOSTILE = "</script><script>alert(1)</script>"


def tasks(options: argparse.Namespace) -> dict[str, Task]:
    half = options.probes // 2
    return {
        "labelling page": partial(probe_labelling, options.probes - half, options.seed),
        "report": partial(probe_report, half, options.seed),
    }


def probe_labelling(count: int, seed: int, folder: Path) -> Tally:
    file = LabelFile(folder / "labels.jsonl")
    pairs = [Pair(f"p{n}", f"Question {n}? {HOSTILE}", "First.", "Second.") for n in range(50)]
    client = TestClient(make_labelling_page(Labelling(pairs, file, 0), "token", None, "me"), base_url=HERE)
    tally = _probe(client, count, Random(f"{seed} labels"), folder, lambda: client.get("api/next?annotator=ann").json())
    file.close()
    labels = read_labels(folder / "labels.jsonl")  # raises if it is not whole
    tally.more["labels"] = len(labels)
    return tally


def probe_report(count: int, seed: int, folder: Path) -> Tally:
    run = Run(folder / "run")
    run.write_recipe(load_recipe("demo"), "ppo")
    rows = [{"iteration": n, "reward": float(n), "kl": 0.1} for n in range(1, 4)]
    (run.stage("ppo") / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"iteration": n, "prompt": HOSTILE, "response": HOSTILE, "reward": 1.0} for n in (1, 3)]
    (run.stage("ppo") / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    client = TestClient(make_report([run.path], lambda: read_runs([run.path]), "token"), base_url=HERE)
    return _probe(client, count, Random(f"{seed} report"), folder, lambda: {"task": None})


def _probe(client: TestClient, count: int, draw: Random, folder: Path, ask) -> Tally:
    client.follow_redirects = False
    tally, files = Tally(), _names(folder)
    with changes_outside(folder) as changes:
        for _ in range(count):
            request = draw_request(draw, ask()["task"] or {"id": "t", "pair_id": "p0"})
            reply = client.request(**request)  # raises what the app does
            wrong = [wrong_with_reply(reply), *changes.seen]
            if HOSTILE in reply.text and "html" in reply.headers.get("content-type", ""):
                wrong.append("what a run holds is markup")
            if _names(folder) != files:
                wrong.append("files have come")
            tally.add("; ".join(filter(None, wrong)) and f"{request}: {wrong}")
            tally.more[str(reply.status_code)] += 1
            changes.seen.clear()
    return tally


def _names(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))

"""Pairs, files of labels and running servers for the tests of the labelling page."""

from __future__ import annotations

import json

import pytest

from lorarlhf.preferences.labelling import Answer, Labelling
from lorarlhf.preferences.labels import LabelFile
from lorarlhf.preferences.pairs import Pair


@pytest.fixture
def make_pairs():
    """`make_pairs(n)`: text pairs p0, p1, ..."""
    return lambda count: [Pair(f"p{i}", f"Question {i}?", f"First {i}.", f"Second {i}.") for i in range(count)]


@pytest.fixture
def write_pairs(tmp_path):
    """`write_pairs(rows)`: a file of them. A number stands for so many pairs p0, p1, ..."""

    def write(rows, name="pairs.jsonl"):
        if isinstance(rows, int):
            rows = [
                {
                    "pair_id": f"p{i}",
                    "prompt": f"Question {i}?",
                    "response_a": f"First {i}.",
                    "response_b": f"Second {i}.",
                }
                for i in range(rows)
            ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def labels_path(tmp_path):
    return tmp_path / "labels.jsonl"


@pytest.fixture
def start_labelling(labels_path, make_pairs):
    """`start_labelling(pairs or their number)`: again on the same file, as after a restart."""
    files = []

    def start(pairs, seed=0, overlap=1.0):
        for file in files:
            file.close()
        files.append(LabelFile(labels_path))
        return Labelling(make_pairs(pairs) if isinstance(pairs, int) else pairs, files[-1], seed, (), overlap)

    yield start
    for file in files:
        file.close()


@pytest.fixture
def give():
    """`give(labelling, who, choice)`: answer the next task; "a" and "b" mean a response, wherever it is shown."""

    def answer(labelling, who, choice, **more):
        task = labelling.next_task(who)
        if choice in ("a", "b"):
            choice = "left" if choice == task.left else "right"
        fields = {"seconds": 1.5, **more}
        labelling.record(who, Answer(task=task.id, pair_id=task.pair.id, choice=choice, **fields))
        return task

    return answer


@pytest.fixture
def start(run_collect, open_page, write_pairs, labels_path):
    """`start(rows)`: a server for one annotator, and its page."""

    def started(rows, *args, **options):
        running = run_collect("--pairs", write_pairs(rows), "--out", labels_path, "--annotator", "ann", *args)
        return running, open_page(running.link, **options)

    return started

"""Votes out of label files and tables, and what PandaLM's annotators make of its test set."""

import json
from pathlib import Path

import pytest

from lorarlhf.errors import UserError
from lorarlhf.preferences.agreement import Vote, measure_agreement
from lorarlhf.preferences.pairs import Pair
from lorarlhf.preferences.votes import read_votes

PANDALM = Path(__file__).parents[2].parent / "shared" / "data" / "pandalm" / "testset-v1.json"


def label(pair, annotator, choice, left="a", repeat=False, seconds=1.5):
    return {
        "pair_id": pair,
        "annotator": annotator,
        "choice": choice,
        "left": left,
        "repeat": repeat,
        "seconds": seconds,
        "strength": None,
        "comment": None,
        "time": "2026-11-22T10:00:00.000+00:00",
        "seed": 0,
    }


def write(path, rows, end="\n"):
    path.write_text("\n".join(map(json.dumps, rows)) + end)
    return str(path)


def test_labels_of_several_files(tmp_path):
    undo = {"undo": "p2", "annotator": "ann", "repeat": False, "time": "2026-11-22T10:00:01.000+00:00"}
    ann = [label("p1", "ann", "a"), label("p2", "ann", "b"), undo, label("p2", "ann", "both_bad", left="b")]
    bob = [label("p1", "bob", "skip"), label("p2", "bob", "tie"), label("p2", "bob", "b", repeat=True)]
    files = [write(tmp_path / "ann.jsonl", ann), write(tmp_path / "bob.jsonl", bob, '\n{"pair_id": "p3", "anno')]
    pairs = [Pair("p1", "q", "long", "no"), Pair("p2", [], [{"role": "assistant", "content": "as"}], "so")]
    assert read_votes(files, pairs) == [
        Vote("p1", "ann", "a", "a", False, 1.5, "a"),
        Vote("p2", "ann", "tie", "b", False, 1.5, None),
        Vote("p2", "bob", "tie", "a", False, 1.5, None),
        Vote("p2", "bob", "b", "a", True, 1.5, None),
    ]
    duel = [Pair("p1", "q", "as", "so", "base / runs/ppo"), Pair("p2", "q", "as", "so", "base / base")]
    assert [vote.policies for vote in read_votes(files[:1], duel)] == [("base", "runs/ppo"), None]
    assert read_votes(files[:1] * 2, []) == [
        Vote("p1", "ann", "a", "a", False, 1.5),
        Vote("p2", "ann", "tie", "b", False, 1.5),
    ]


def test_a_table_with_a_column_an_annotator(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("response1,response2,annotator1,annotator2\nlong,no,1,2\nas,so,0,\n")
    assert read_votes([str(path)], []) == [
        Vote("votes.csv:1", "annotator1", "a", longer="a"),
        Vote("votes.csv:1", "annotator2", "b", longer="a"),
        Vote("votes.csv:2", "annotator1", "tie"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "response1,response2,annotator1\na,b,4\n", r"a\.csv: row 1: annotator1 is not one of 0, 1, 2"),
        ("a.jsonl", '{"pair_id": "p"}\n', r"a\.jsonl:1: not a label"),
        ("a.jsonl", "", "no labels in these files"),
    ],
)
def test_other_files_are_errors(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        measure_agreement(read_votes([str(tmp_path / name)], []))
    with pytest.raises(UserError, match="no such file"):
        read_votes([str(tmp_path / "missing.jsonl")], [])


@pytest.mark.skipif(not PANDALM.is_file(), reason="needs the real files in ../shared/data")
def test_pandalm():
    """Its paper gives Cohen's kappa of each two of the three annotators: 0.85, 0.86 and 0.88 (Wang et al. 2023)."""
    votes = read_votes([str(PANDALM)], [])
    found = measure_agreement(votes)
    assert (len(votes), found.pairs, found.shared) == (2997, 999, 999)
    assert found.raw.value == pytest.approx(0.920, abs=5e-4)
    assert found.fleiss.value == pytest.approx(0.864, abs=5e-4)
    assert found.alpha.value == pytest.approx(0.864, abs=5e-4)
    assert found.noise.value == pytest.approx(0.027, abs=5e-4)
    kappas = []
    for left_out in ("annotator1", "annotator2", "annotator3"):
        cohen = measure_agreement(vote for vote in votes if vote.annotator != left_out).cohen
        kappas.append(round(cohen.value, 2))
    assert sorted(kappas) == [0.85, 0.86, 0.88]

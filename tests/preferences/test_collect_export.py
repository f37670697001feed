"""`lorarlhf collect export`: labels in, preference rows out."""

import json

import pytest
from typer.testing import CliRunner

from lorarlhf.cli.collect import collect_app
from lorarlhf.data.examples import load_preferences
from lorarlhf.errors import UserError
from lorarlhf.preferences.label_rows import preference_rows
from lorarlhf.preferences.labels import Label
from lorarlhf.preferences.pairs import Pair
from lorarlhf.recipe.sections import DataConfig

PAIRS = [Pair(f"p{i}", f"Q{i}?", f"a{i}", f"b{i}") for i in range(4)]


def label(pair_id, annotator, choice, strength=None, repeat=False):
    fields = {"left": "a", "seconds": 1.0, "comment": None, "time": "2026-01-01", "seed": 0}
    return Label(pair_id=pair_id, annotator=annotator, choice=choice, strength=strength, repeat=repeat, **fields)


def votes(*by_pair):
    """Labels from strings, one letter an annotator: a, b, t(ie), (both bad) x, s(kip)."""
    choices = {"a": "a", "b": "b", "t": "tie", "x": "both_bad", "s": "skip"}
    return [
        label(f"p{i}", f"n{who}", choices[letter])
        for i, letters in enumerate(by_pair)
        for who, letter in enumerate(letters)
    ]


def export(labels, majority=False, min_agreement=0.0, pairs=PAIRS):
    exported = preference_rows(pairs, labels, majority, min_agreement)
    return [(row["pair_id"], row["chosen"]) for row in exported.rows], dict(exported.left_out)


def test_one_row_a_label():
    rows, left_out = export(votes("ab", "b", "tx", "s"))
    assert rows == [("p0", "a0"), ("p0", "b0"), ("p1", "b1")]
    assert left_out == {"ties": 1, "both bad": 1, "skips": 1}


@pytest.mark.parametrize(
    ("letters", "row", "left_out"),
    [
        ("a", "a0", {}),
        ("bba", "b0", {}),
        ("ab", None, {"pairs without a majority": 1}),
        ("aatb", None, {"pairs without a majority": 1}),
        ("aat", "a0", {}),
        ("tta", None, {"ties": 1}),
        ("xxa", None, {"both bad": 1}),
        ("ass", "a0", {"skips": 2}),
    ],
)
def test_majority_is_more_than_half_of_the_answers(letters, row, left_out):
    assert export(votes(letters), majority=True) == ([("p0", row)] if row else [], left_out)


@pytest.mark.parametrize(("min_agreement", "kept"), [(0.0, 3), (0.66, 2), (0.67, 1), (1.0, 1)])
@pytest.mark.parametrize("majority", [True, False])
def test_min_agreement(min_agreement, kept, majority):
    rows, left_out = export(votes("aaa", "aab", "aaabb"), majority, min_agreement)
    assert len({pair for pair, _ in rows}) == kept
    assert left_out.get("pairs below --min-agreement", 0) == 3 - kept


def test_repeats_and_labels_of_other_pairs_do_not_vote():
    labels = [label("p0", "ann", "a"), label("p0", "ann", "b", repeat=True), label("none", "ann", "a")]
    assert export(labels) == ([("p0", "a0")], {"repeats": 1, "labels of pairs not in --pairs": 1})


def test_margin_is_the_mean_strength_of_those_who_agree():
    labels = [label("p0", "n0", "b", 3), label("p0", "n1", "b"), label("p0", "n2", "a", 1), label("p0", "n3", "b", 2)]
    [row] = preference_rows(PAIRS, labels, True, 0.0).rows
    assert (row["margin"], row["annotators"]) == (2.5, ["n0", "n1", "n3"])
    assert "margin" not in preference_rows(PAIRS, labels, False, 0.0).rows[1]


def test_rows_by_a_criterion_of_ones_own():
    labels = [
        label("p0", "ann", "a", 3).model_copy(update={"criteria": {"helpful": "a", "honest": "b"}}),
        label("p1", "ann", "b", 2).model_copy(update={"criteria": {"helpful": "b", "honest": "tie"}}),
        label("p2", "ann", "b", 1),
    ]

    def rows(criterion):
        exported = preference_rows(PAIRS, labels, False, 0.0, criterion)
        return [(row["chosen"], row.get("margin")) for row in exported.rows], dict(exported.left_out)

    assert rows(None) == ([("a0", 3.0), ("b1", 2.0), ("b2", 1.0)], {})
    assert rows("helpful") == ([("a0", 3.0), ("b1", 2.0)], {"labels that say nothing of helpful": 1})
    assert rows("honest") == ([("b0", None)], {"ties": 1, "labels that say nothing of honest": 1})


def run(*args):
    return CliRunner().invoke(collect_app, ["export", *map(str, args)])


@pytest.fixture
def labels_file(labels_path):
    def write(labels, tail=""):
        labels_path.write_text("".join(json.dumps(given.model_dump()) + "\n" for given in labels) + tail)
        return labels_path

    return write


def test_the_reward_stage_reads_what_is_exported(write_pairs, labels_file, tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": f"Q{i}?"}], "pair_id": f"p{i}", "source": "mine"}
        | {"response_a": f"a{i}", "response_b": f"bé{i}"}
        for i in range(3)
    ]
    labels = [label("p0", "ann", "b", 2), label("p1", "ann", "a"), label("p2", "ann", "tie")]
    out = tmp_path / "new" / "prefs.jsonl"
    result = run(labels_file(labels, tail='{"pair_id": "p2", "ann'), "--pairs", write_pairs(rows), "--out", out)
    assert result.output == f"export: 2 rows in {out}; left out: ties (1)\n"
    assert json.loads(out.read_text().splitlines()[0]) == {
        "prompt": [{"role": "user", "content": "Q0?"}],
        "chosen": [{"role": "assistant", "content": "bé0"}],
        "rejected": [{"role": "assistant", "content": "a0"}],
        "margin": 2.0,
        "annotators": ["ann"],
        "pair_id": "p0",
        "source": "mine",
    }
    read = load_preferences(DataConfig(preferences=str(out), test_size=0), "train").rows
    assert [(row.chosen[0]["content"], row.margin) for row in read] == [("bé0", 2.0), ("a1", None)]


def test_refusals(write_pairs, labels_file, tmp_path):
    pairs, labels = write_pairs(2), labels_file(votes("t", "s"))
    out = tmp_path / "prefs.jsonl"
    nothing = str(run(labels, "--pairs", pairs, "--out", out).exception)
    assert nothing == f"{labels}: none of 2 labels makes a row; left out: skips (1), ties (1)"
    assert not out.exists()
    labels_file(votes("a"))
    assert isinstance(run(labels, "--pairs", pairs, "--out", tmp_path / "prefs").exception, UserError)
    out.write_text("precious")
    assert "exists already and is not overwritten" in str(run(labels, "--pairs", pairs, "--out", out).exception)
    assert out.read_text() == "precious"

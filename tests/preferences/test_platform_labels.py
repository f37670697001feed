"""Pairs to Label Studio and Argilla, and their exports back as labels."""

import json
from collections import Counter

import pytest
from platform_exports import annotation, record, said, task
from typer.testing import CliRunner

from lorarlhf.cli.collect import collect_app
from lorarlhf.data.examples import load_preferences
from lorarlhf.errors import UserError
from lorarlhf.preferences.pairs import Pair
from lorarlhf.preferences.platforms import labels_in, platform_tasks
from lorarlhf.preferences.votes import read_votes
from lorarlhf.recipe.sections import DataConfig

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Q?"}]


def run(*args):
    return CliRunner().invoke(collect_app, list(map(str, args)))


def written(path, rows):
    path.write_text(json.dumps(rows))
    return path


def test_tasks_have_both_responses_shuffled_and_no_source(make_pairs):
    pairs = [Pair(f"p{i}", "Q?", f"a{i}", f"b{i}", "base / tuned") for i in range(60)]
    for platform, place, sides in (("label-studio", "data", "answer"), ("argilla", "fields", "response")):
        rows = platform_tasks(pairs, platform)
        lefts = Counter()
        for pair, row in zip(pairs, rows, strict=True):
            left = (row.get("metadata") or row["data"])["left"]
            shown = [row[place][f"{sides}1"], row[place][f"{sides}2"]]
            assert shown == [pair.response_a, pair.response_b][:: 1 if left == "a" else -1]
            lefts[left] += 1
        assert 15 < lefts["a"] < 45
        assert "tuned" not in json.dumps(rows)


def test_prompts_are_text_unless_one_has_several_turns():
    one = Pair("p0", [{"role": "user", "content": "Q?"}], [{"role": "assistant", "content": "a"}], "b")
    text, several = Pair("p1", "Text?", "a", "b"), Pair("p2", TURNS, "a", "b")
    prompts = [
        [row["data"]["prompt"] for row in platform_tasks(some, "label-studio")]
        for some in ([one, text], [text, several])
    ]
    assert prompts == [["Q?", "Text?"], [[{"role": "user", "content": "Text?"}], TURNS]]


def test_label_studio_there_and_back(write_pairs, tmp_path):
    pairs, out = write_pairs(3), tmp_path / "tasks.json"
    assert run("tasks", pairs, "--format", "label-studio", "--out", out).output == f"tasks: 3 pairs in {out}\n"
    given = [row["data"] for row in json.loads(out.read_text())]
    left = [data["left"] for data in given]
    better = [said("comparison", "pairwise", selected=side) for side in ("left", "right")]
    export = written(
        tmp_path / "export.json",
        [
            task(
                annotation(better[0], said("strength", "rating", rating=2), said("comment", "textarea", text=["why"])),
                **given[0],
            ),
            task(
                annotation(better[1]),
                annotation(said("neither", "choices", choices=["both_bad"]), completed_by=2),
                **given[1],
            ),
            task(annotation(was_cancelled=True), **given[2]),
        ],
    )
    other = {"a": "b", "b": "a"}
    assert [(label.pair_id, label.annotator, label.choice, label.left) for label in labels_in(export)] == [
        ("p0", "1", left[0], left[0]),
        ("p1", "1", other[left[1]], left[1]),
        ("p2", "1", "skip", left[2]),
        ("p1", "2", "both_bad", left[1]),
    ]
    first = next(iter(labels_in(export)))
    assert (first.strength, first.comment, first.seconds) == (2, "why", 4.288)
    vote = read_votes([str(export)], [])[0]
    assert (vote.pair, vote.annotator, vote.seconds) == ("p0", "1", 4.288)
    rows = tmp_path / "prefs.jsonl"
    assert run("export", export, "--pairs", pairs, "--out", rows).output.startswith(f"export: 2 rows in {rows}")
    config = DataConfig(preferences=str(rows), test_size=0)
    expected = [
        (side, f"{'First' if side == 'a' else 'Second'} {i}.") for i, side in enumerate((left[0], other[left[1]]))
    ]
    assert [row.chosen for row in load_preferences(config, "train").rows] == [text for _, text in expected]


def test_argilla_there_and_back(make_pairs, tmp_path):
    sent = platform_tasks(make_pairs(2), "argilla")
    answered = record(preference={"ann": "response2", "bob": "tie"}, comment={"ann": "why"}, strength={"ann": 3})
    kept = ("id", "fields", "metadata")
    rows = [given | {key: row[key] for key in kept} for given, row in zip([answered, record()], sent, strict=True)]
    ann, bob = labels_in(written(tmp_path / "export.json", rows))
    right = "b" if sent[0]["metadata"]["left"] == "a" else "a"
    assert (ann.pair_id, ann.annotator, ann.choice, ann.strength, ann.comment) == ("p0", "ann", right, 3, "why")
    assert (bob.choice, bob.strength, bob.seconds) == ("tie", None, None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (task(annotation()), "row 1: not written by `lorarlhf collect tasks`: no pair_id and left; to train on it as"),
        (record(preference={"ann": "tie"}), "row 1: not written by `lorarlhf collect tasks`"),
        ({"text": "?"}, "row 1: neither a task of Label Studio nor a record of Argilla"),
        (task(pair_id="p1", left="a") | {"annotations": None}, "row 1: annotations is missing, not a list"),
    ],
)
def test_other_exports_are_told_from_labels(row, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        labels_in(written(tmp_path / "export.json", [row]))


def test_the_reward_stage_reads_an_export_as_it_is(tmp_path):
    export = written(tmp_path / "export.json", [task(annotation(said("comparison", "pairwise", selected="right")))])
    [row] = load_preferences(DataConfig(preferences=str(export), test_size=0), "train").rows
    assert (row.chosen[0]["content"], row.annotators) == ("Ask someone else.", ("1",))


def test_refusals(write_pairs, tmp_path):
    pairs, out = write_pairs(1), tmp_path / "tasks.json"
    assert "must end in .json" in str(
        run("tasks", pairs, "--format", "argilla", "--out", tmp_path / "a.jsonl").exception
    )
    out.write_text("precious")
    assert "is not overwritten" in str(run("tasks", pairs, "--format", "argilla", "--out", out).exception)
    assert out.read_text() == "precious"

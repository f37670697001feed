"""What Label Studio and Argilla export, in the shape that their releases 1.23 and 2.8 write it: rows of comparisons."""

import pytest
from platform_exports import annotation, record, said, task

from lorarlhf.data.formats import PREFERENCES, PROMPTS, recognise
from lorarlhf.data.rows import BadRow, Preference

ASKED = [{"role": "user", "content": "How much are the eggs?"}]
ONE, TWO = ([{"role": "assistant", "content": text}] for text in ("Four dollars.", "Ask someone else."))


def read(row, table=PREFERENCES):
    return recognise(row, table).convert(row)


def test_label_studio_gives_a_row_an_annotation():
    row = task(
        annotation(said("comparison", "pairwise", selected="left"), said("strength", "rating", rating=3)),
        annotation(
            said("comparison", "pairwise", selected="right"), completed_by={"id": 2, "email": "bob@example.com"}
        ),
        annotation(said("neither", "choices", choices=["tie"]), completed_by=3),
        annotation(completed_by=4),
        annotation(said("comparison", "pairwise", selected="left"), completed_by=5, was_cancelled=True),
    )
    assert read(row) == [
        Preference(ASKED, ONE, TWO, 3, annotators=("1",)),
        Preference(ASKED, TWO, ONE, annotators=("bob@example.com",)),
        Preference(ASKED, ONE, TWO, tie=True, annotators=("3",)),
    ]
    assert read(row, PROMPTS) == [ASKED]
    assert read(task()) == []


def test_label_studio_before_annotations_were_called_so():
    row = task(annotation(said("comparison", "pairwise", selected="right")))
    row["completions"] = row.pop("annotations")
    del row["completions"][0]["completed_by"]
    assert read(row) == [Preference(ASKED, TWO, ONE, annotators=("annotator",))]


def test_argilla_gives_a_row_a_response():
    row = record(
        preference={"ann": "response1", "bob": "response2", "eve": "both_bad", "zoe": ["response2", "response1"]},
        strength={"bob": 2},
        comment={"ann": "why not"},
    )
    assert read(row) == [
        Preference(ASKED, ONE, TWO, annotators=("ann",)),
        Preference(ASKED, TWO, ONE, 2, annotators=("bob",)),
        Preference(ASKED, ONE, TWO, tie=True, annotators=("eve",)),
        Preference(ASKED, TWO, ONE, annotators=("zoe",)),
    ]
    row["fields"]["prompt"] = [{"role": "system", "content": "Be kind."}, *ASKED]
    assert read(row)[0].prompt == row["fields"]["prompt"]
    row["responses"]["preference"] = [{"value": "Response 2", "user_id": "ann"}]  # names of an older template
    assert read(row)[0].chosen == TWO
    assert read(record()) == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (task() | {"data": {"image": "a.png"}}, "prompt is missing"),
        (task() | {"annotations": "none"}, "annotations is text, not a list of objects"),
        (record(preference={"ann": "good"}), "a preference is not one of response1, response2, tie, both_bad"),
        (
            record() | {"responses": {"preference": "response1"}},
            "responses to preference is text, not a list of objects",
        ),
        (
            record() | {"responses": [{"values": {}, "user_id": "ann"}]},
            "responses is a list, not an object",
        ),  # Argilla 1
        (record() | {"metadata": "none"}, "metadata is text, not an object"),
        (task(annotation() | {"result": "none"}), "result is text, not a list"),
        (task(annotation(said("neither", "choices", choices="tie"))), "choices is text, not a list"),
        (task(annotation(said("comment", "textarea", text=3))), "text is a number, not a list"),
        (task(annotation(said("n", "choices") | {"value": "tie"})), "value is text, not an object"),
    ],
)
def test_bad_rows(row, reason):
    with pytest.raises(BadRow, match=reason):
        read(row)

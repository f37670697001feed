"""Reading pairs to compare."""

import pytest

from lorarlhf.errors import UserError
from lorarlhf.preferences.pairs import Pair, read_pairs

ROW = {"prompt": "Q?", "response_a": "yes", "response_b": "no"}
ASKED = [{"role": "user", "content": "Q?"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))


def test_text_stays_text_and_extra_columns_do_not_matter(write_pairs):
    path = write_pairs([ROW | {"pair_id": 7, "source": "mine", "model_a": "x"}])
    assert read_pairs(path) == [Pair("7", "Q?", "yes", "no", "mine")]


def test_messages_anywhere_make_messages_everywhere(write_pairs):
    for given in ({"prompt": ASKED}, {"response_a": YES}, {"prompt": ASKED, "response_b": NO}):
        [pair] = read_pairs(write_pairs([ROW | given]))
        assert (pair.prompt, pair.response_a, pair.response_b) == (ASKED, YES, NO)


def test_preference_rows_can_be_labelled_again(write_pairs):
    [pair] = read_pairs(write_pairs([{"prompt": ASKED, "chosen": YES, "rejected": NO}]))
    assert (pair.prompt, pair.response_a, pair.response_b) == (ASKED, YES, NO)


def test_without_ids_texts_identify_a_pair(write_pairs):
    first, again, other = (
        read_pairs(write_pairs([ROW])),
        read_pairs(write_pairs([ROW, ROW])),
        [ROW | {"response_b": "o"}],
    )
    assert first == again
    assert len(first[0].id) == 16
    assert read_pairs(write_pairs(other))[0].id != first[0].id


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no pairs"),
        ([ROW, ROW | {"response_a": " "}], ":2: response_a is empty; mend or remove the row"),
        ([ROW, {"prompt": "Q?", "response_a": "yes"}], ":2: response_b is missing"),
        ([ROW | {"prompt": 3}], ":1: prompt is a number, not text"),
        ([ROW | {"prompt": [{"role": "user"}]}], ":1: prompt has a message without role and content"),
        ([ROW | {"response_b": "yes"}], "response_a and response_b are identical"),
        ([ROW | {"response_b": "\ud83d"}], "half of a surrogate pair"),
        ([ROW | {"pair_id": 1.5}], "pair_id is neither text nor a whole number"),
        ([ROW | {"pair_id": "x"}, ROW | {"pair_id": "x", "prompt": "R?"}], "'x' stands for two different pairs"),
        ([{"question": "Q?"}], "found question"),
        ([["Q?"]], "not a JSON object"),
    ],
)
def test_unusable(rows, message, write_pairs):
    with pytest.raises(UserError) as error:
        read_pairs(write_pairs(rows))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_pairs(tmp_path / "pairs.jsonl")

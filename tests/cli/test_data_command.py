"""`lorarlhf data inspect | convert | mix | split | dedup | agreement`."""

import json
import sys

import pytest
from typer.testing import CliRunner

from lorarlhf.cli.data import data_app
from lorarlhf.errors import UserError

PAIRS = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(50)]
STEER = [{"prompt": f"Hi {i}", "response_1": "long", "response_2": "b", "preference_strength": i - 1} for i in range(3)]


def run(*args):
    result = CliRunner().invoke(data_app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*args):
    error = CliRunner().invoke(data_app, [str(arg) for arg in args]).exception
    assert isinstance(error, UserError)
    return str(error)


@pytest.fixture
def write(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def words(text):
    return " ".join(text.split())


def test_inspect(write):
    path = write([*PAIRS, PAIRS[0], "{torn", {"prompt": "a", "chosen": "b" * 500, "rejected": "b"}])
    output = words(run("inspect", path))
    for expected in (
        f"{path}: comparisons",
        "format text pairs with a prompt, as prompt is text, chosen is text, rejected is text",
        "rows 53, which hold 52 comparisons",
        "ties 0",
        "duplicates 1",
        "prompts 51 different",
        f"left out not valid JSON (Expecting property name enclosed in double quotes): 1, first at {path}:52",
        "chosen length median 7, 95% up to 7, longest 500 characters",
        "longer wins 100.0% of decided pairs of different lengths",
        "[1] prompt Question 0? chosen Yes 0. rejected No.",
    ):
        assert expected in output
    assert "too long" not in output  # which only tokens can tell
    assert "[3]" in output
    assert "[4]" not in output


def test_inspect_shortens_what_it_shows(write):
    output = run("inspect", write([{"prompt": "a\n\nb", "chosen": "c" * 500, "rejected": "d"}]))
    assert "a b" in output
    assert "c" * 159 + "…" in output
    assert "c" * 160 not in output


def test_inspect_in_tokens_and_against_test_data(write):
    path, test = write(PAIRS), write(PAIRS[:7], "test.jsonl")
    output = words(run("inspect", path, "--test", test, "--model", "shipped:demo/model", "--max-length", 8))
    assert "prompts 50 different, 7 of them in the test data too" in output
    assert "tokens" in output
    assert "100.0% have a side over 8 tokens, and would be dropped" in output


def test_inspect_counts_the_tokens_that_training_will_see(write):
    texts = {"prompt": "Do you sell mugs?", "chosen": "Yes.", "rejected": "No, go away."}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    turns = {key: [{"role": roles[key], "content": text}] for key, text in texts.items()}
    of_text, of_turns = (
        run("inspect", write([row]), "--model", "shipped:demo/model").splitlines() for row in (texts, turns)
    )
    lengths = [[line for line in lines if " length " in line] for lines in (of_text, of_turns)]
    assert lengths[0] == lengths[1]
    assert len(lengths[0]) == 3


def test_own_columns(write):
    path = write([{"q": "a", "good": "b", "bad": "c"}])
    assert "columns not recognised as comparisons: found q, good, bad" in refusal("inspect", path)
    columns = ("--column", "prompt=q", "--column", "chosen=good", "--column", "rejected=bad")
    assert "text pairs with a prompt" in run("inspect", path, *columns)
    assert "did you mean chosen?" in refusal("inspect", path, "--column", "choosen=good")
    assert "write NAME=COLUMN" in refusal("inspect", path, "--column", "chosen")


def test_convert(write, tmp_path):
    source, dest = write([*STEER, "{torn"]), tmp_path / "out.jsonl"
    assert "rows.jsonl:4: not valid JSON" in refusal("convert", source, dest)
    output = run("convert", source, dest, "--on-bad-row", "skip")
    assert f"Wrote 2 pairs to {dest}" in output
    assert "left out: tie (1)" in output
    assert "left out: not valid JSON" in output
    rows = [json.loads(line) for line in dest.read_text().splitlines()]
    assert [row["chosen"] for row in rows] == [[{"role": "assistant", "content": text}] for text in ("long", "b")]
    assert "exists already and is not overwritten" in refusal("convert", source, dest, "--on-bad-row", "skip")
    assert "Wrote 3 pairs" in run("convert", write(STEER), tmp_path / "ties.jsonl.gz", "--ties", "keep")


def test_split(write, tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    output = run("split", write(PAIRS), train, test, "--test-size", "0.2")
    prompts = [
        [json.loads(line)["prompt"][0]["content"] for line in path.read_text().splitlines()] for path in (train, test)
    ]
    assert f"Wrote {len(prompts[0])} pairs to {train} and {len(prompts[1])} to {test}" in output
    assert sorted(prompts[0] + prompts[1]) == sorted(row["prompt"] for row in PAIRS)
    assert not set(prompts[0]) & set(prompts[1])
    assert "exists already" in refusal("split", write(PAIRS), train, test)


def test_agreement_of_two(tmp_path):
    table = tmp_path / "votes.csv"
    rows = [(1, 1)] * 20 + [(1, 2)] * 5 + [(2, 1)] * 10 + [(2, 2)] * 15
    table.write_text("response1,response2,annotator1,annotator2\n" + "".join(f"long,no,{a},{b}\n" for a, b in rows))
    output = words(run("agreement", table))
    for expected in (
        "annotators: 2; pairs: 50, 50 of them judged by two or more",
        "raw agreement 0.700 (95%: 0.",
        "Cohen's kappa 0.400 (95%: 0.",
        "annotator1 50 0 70.0% of 50 - - 50.0% of 50 -",
        "annotator2 50 0 70.0% of 50 - - 60.0% of 50 -",
        "votes.csv:21 1 1 0",
        "label noise: 0.184 (95%: 0.",
        "from pairs that two annotators have decided",
        "--set reward.label_smoothing=0.18",
    ):
        assert expected in output
    assert "majority votes" not in output
    assert "slows learning" not in output
    assert words(run("agreement", table)) == output  # seeded


def test_much_noise_comes_with_a_warning(tmp_path):
    table = tmp_path / "votes.csv"
    rows = [(1, 1)] * 30 + [(1, 2)] * 10 + [(2, 1)] * 10
    table.write_text("response1,response2,annotator1,annotator2\n" + "".join(f"long,no,{a},{b}\n" for a, b in rows))
    output = run("agreement", table)
    assert "reward.label_smoothing=0.28" in output
    assert "slows learning" in output


def label(pair, annotator, choice, left="a", repeat=False):
    base = {"strength": None, "comment": None, "time": "2026-11-22T10:00:00.000+00:00", "seed": 0, "seconds": 2.5}
    return base | {"pair_id": pair, "annotator": annotator, "choice": choice, "left": left, "repeat": repeat}


def test_agreement_of_label_files_with_their_pairs(write):
    given = [("ann", "a", "a", False), ("ann", "a", "b", True), ("bob", "b", "a", False), ("cat", "tie", "b", False)]
    labels = write([label("p1", *answer) for answer in given], "labels.jsonl")
    pairs = write([{"pair_id": "p1", "prompt": "q", "response_a": "long", "response_b": "no"}], "pairs.jsonl")
    output = words(run("agreement", labels, "--pairs", pairs))
    assert "ann 2 0 - 100.0% of 1 50.0% of 2 100.0% of 2 2.5" in output
    assert "bob 1 0 - - 0.0% of 1 0.0% of 1 2.5" in output
    assert "p1 1 1 1 p1 prompt q a long b no the page of `lorarlhf collect` shows and reopens them: key m" in output
    assert "next to chance" in output
    assert "blind comparison" not in output


def test_one_annotator_alone_is_judged_by_repeats(write):
    """Of 50 repeats, 9 are answered otherwise: 2p(1 - p) = 0.18 at p = 0.1."""
    first = [label(f"p{i}", "ann", "a") for i in range(50)]
    again = [label(f"p{i}", "ann", "b" if i < 9 else "a", "b", True) for i in range(50)]
    output = words(run("agreement", write(first + again, "labels.jsonl")))
    assert "label noise: 0.100 (95%: 0.0" in output
    assert "from pairs that came back to the same annotator" in output
    assert "--set reward.label_smoothing=0.1" in output


def test_a_blind_comparison_says_who_won(write):
    answers = ["b"] * 16 + ["a"] * 3 + ["tie", "both_bad", "skip"]
    labels = write([label(f"p{i}", "ann", answer) for i, answer in enumerate(answers)], "labels.jsonl")
    texts = {"prompt": "q", "response_a": "long", "response_b": "no", "source": "base / runs/mine/ppo"}
    pairs = write([texts | {"pair_id": f"p{i}"} for i in range(len(answers))], "pairs.jsonl")
    output = words(run("agreement", labels, "--pairs", pairs))
    assert "blind comparison: 21 pairs, 2 of them ties, half a win each" in output
    # Wilson's interval of 17 in 21: 0.600 to 0.923.
    assert "base 0.190 (95%: 0.077 to 0.400) runs/mine/ppo 0.810 (95%: 0.600 to 0.923)" in output


def test_agreement_of_one_says_what_is_missing(tmp_path):
    table = tmp_path / "votes.csv"
    table.write_text("response1,response2,annotator1\na,b,1\n")
    output = words(run("agreement", table))
    assert "annotators: 1; pairs: 1, 0 of them judged by two or more" in output
    assert "raw agreement undefined on these labels" in output
    assert "label noise: unknown" in output


def test_mix(write, tmp_path):
    others = [{**row, "prompt": f"Other {i}?"} for i, row in enumerate(PAIRS[:10])]
    a, b, dest = write(PAIRS, "a.jsonl"), write([*others, "{torn"], "b.jsonl"), tmp_path / "mixed.jsonl"
    assert "b.jsonl:11: not valid JSON" in refusal("mix", dest, f"{a}:2", f"{b}:1")
    assert not dest.exists()
    output = run("mix", dest, f"{a}:2", f"{b}:1", "--on-bad-row", "skip")
    assert output == f"Wrote 30 pairs to {dest}\n  20 of {a}\n  10 of {b}\n"
    rows = [json.loads(line) for line in dest.read_text().splitlines()]
    assert [row["source"] for row in rows[:6]].count("b.jsonl") == 2, "not one after the other"
    assert len({row["prompt"][0]["content"] for row in rows}) == 30
    assert "Wrote 30 pairs" in run("mix", tmp_path / "again.jsonl", dest)
    assert "exists already" in refusal("mix", dest, a)
    assert "a.jsonl has no weight, and others have" in refusal("mix", tmp_path / "x.jsonl", a, f"{b}:1")
    assert "weight: Input should be greater than 0" in refusal("mix", tmp_path / "x.jsonl", f"{a}:0")


def test_mix_of_parts(write, tmp_path):
    a, dest = write(PAIRS, "a.jsonl"), tmp_path / "mixed.jsonl"
    part = f"{{source: {a}, max_examples: 7}}"
    assert f"Wrote 12 pairs to {dest}" in run("mix", dest, part, f"{{source: {write(PAIRS[:5], 'b.jsonl')}}}")
    assert f"Wrote 5 pairs to {tmp_path}" in run("mix", tmp_path / "m.jsonl", f"{write(PAIRS[:5], 'b😀.jsonl')}:1")
    assert "there are source, name, data_dir" in refusal("mix", tmp_path / "x.jsonl", "{source: a, limit: 7}")


STORY = "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat, and he was old and tired. "
ENDING = "The eldest got the mill, the second the donkey, and the youngest a cat, who made a fortune for him"


def test_dedup(write):
    pytest.importorskip("datasketch")
    train = [
        {"prompt": STORY, "chosen": f"{ENDING}.", "rejected": "Nobody knows."},
        {"prompt": STORY, "chosen": "It was the cat who made a fortune for the youngest.", "rejected": "I forget."},
        {"prompt": f"{STORY}So?", "chosen": f"{ENDING}!", "rejected": "NOBODY knows."},
        *PAIRS[:3],
    ]
    path = write([*train, "{torn"], "train.jsonl")
    before = path.read_bytes()
    output = run("dedup", path)
    assert output.splitlines()[0] == "1 of 6 comparisons repeat an earlier one", "the same prompt alone is none"
    assert "Nobody knows" in output
    assert "test data" not in output
    test = write([{"prompt": STORY.upper()}, {"prompt": "Another?"}], "test.jsonl")
    output = run("dedup", path, "--against", test)
    assert "2 of 5 different prompts are in the test data, too" in output
    assert "0 of 5 different prompts" in run("dedup", path, "--against", write([{"prompt": "Another?"}], "other.jsonl"))
    turned = write([{"prompt": [{"role": "user", "content": STORY}]}], "turns.jsonl")
    assert "2 of 5 different prompts" in run("dedup", path, "--against", turned, "--threshold", "0.95")
    assert "0 of 6 comparisons" in run("dedup", path, "--threshold", "1")
    assert path.read_bytes() == before


def test_dedup_says_what_it_needs(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert "pip install 'lorarlhf[dedup]'" in refusal("dedup", write(PAIRS))

"""What is counted in a source, by hand on small ones; and the real files where they are there."""

import json
from pathlib import Path

import datasets
import pytest
from turns import bot

from lorarlhf.data.inspect import Lengths, characters, held_out, inspect_source
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Source

REAL = Path(__file__).parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files in ../shared/data")


def look(source, test=None, max_length=1000, columns=None):
    return inspect_source(source, "train", columns or {}, characters, max_length, test)


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


PAIRS = [
    pair("aa", "bbbb", "cc"),
    pair("aa", "bbbb", "cc"),  # said twice
    pair("aa", "cc", "bbbb"),  # the other way round is another pair
    pair("dddd", "eeee", "ffff"),
    pair("dddd", "ggggggggggg", "h", tie=True),
    pair("i", "same", "same"),
    pair("", "j", "k"),
    "{torn",
    pair("l", "m", "m"),
]


def test_counts(write):
    report = look(write(PAIRS), max_length=6)
    assert (report.kind, report.format) == ("comparisons", "text pairs with a prompt")
    assert report.why == "prompt is text, chosen is text, rejected is text"
    assert (report.rows, report.pairs, report.ties, report.duplicates) == (9, 5, 1, 1)
    assert (report.prompts, report.shared) == (2, None)
    path = write(PAIRS)
    assert report.bad == {
        "chosen and rejected are identical": (2, f"{path}:6"),
        "prompt is empty": (1, f"{path}:7"),
        "not valid JSON (Expecting property name enclosed in double quotes)": (1, f"{path}:8"),
    }
    assert report.lengths["prompt"] == Lengths(2.0, 4.0, 4)
    assert report.lengths["chosen"].median == 4.0
    assert report.lengths["chosen"].longest == 11
    assert report.lengths["rejected"].longest == 4
    assert report.too_long == 2 / 5  # 4 + 4 and 4 + 11; 2 + 4 is 6, just short enough
    assert report.longer_wins == 2 / 3  # of the decided pairs of different lengths
    assert [example.prompt for example in report.examples] == ["aa", "dddd"]  # prompts differ


@pytest.mark.parametrize(
    ("row", "kind", "form", "lengths"),
    [
        ({"prompt": "a", "response": "bb", "score": 1}, "scored completions", "scored text", ["prompt", "completion"]),
        ({"instruction": "a", "input": "", "output": "bb"}, "demonstrations", "Alpaca style", ["prompt", "completion"]),
        ({"prompt": "a", "id": 1}, "prompts", "text prompts", ["prompt"]),
    ],
)
def test_other_kinds_are_recognised_too(write, row, kind, form, lengths):
    report = look(write(["{torn", row, row]))
    assert (report.kind, report.format, report.pairs, report.duplicates) == (kind, form, 2, 1)
    assert list(report.lengths) == lengths
    assert report.longer_wins is None


def test_unknown_columns_are_an_error_that_speaks_of_comparisons(write):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: columns not recognised as comparisons: found q, good, bad;"):
        look(write([{"q": "a", "good": "b", "bad": "c"}] * 3))
    report = look(
        write([{"q": "a", "good": "b", "bad": "c"}]), columns={"prompt": "q", "chosen": "good", "rejected": "bad"}
    )
    assert report.pairs == 1


def test_prompts_shared_with_the_test_data(write):
    train = write([pair(str(i), "b", "c") for i in range(10)])
    test = write([pair(str(i), "d", "e") for i in (3, 3, 7, 11)], "test.jsonl")
    assert look(train, held_out(train, "train", test)).shared == 2
    assert look(train, held_out(train, "train", write([pair("x", "b", "c")], "none.jsonl"))).shared == 0
    assert held_out(train, "train", None) is None


def test_a_prompt_is_shared_whether_it_is_text_or_a_turn(write):
    train = write([pair([{"role": "user", "content": str(i)}], [bot("b")], [bot("c")]) for i in range(10)])
    test = write([pair(f"{i}\n", "d", "e") for i in (3, 7, 11)], "test.jsonl")
    assert look(train, held_out(train, "train", test)).shared == 2


def test_the_split_that_a_source_names_is_the_one_that_is_read(tmp_path):
    parts = {name: datasets.Dataset.from_list([pair(name, "a", "b")] * n) for name, n in (("train", 1), ("more", 2))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    more = Source(source=str(tmp_path / "saved"), split="more")
    assert look(more).rows == 2
    assert held_out("x.jsonl", "train", more) == (more, "more")


def test_the_test_split_of_a_source_is_compared_unasked(tmp_path):
    rows = [pair(str(i), "a", "b") for i in range(5)]
    parts = {"train": datasets.Dataset.from_list(rows[:3]), "test": datasets.Dataset.from_list(rows[2:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    source = str(tmp_path / "saved")
    assert held_out(source, "test", None) is None
    assert held_out("x.jsonl", "train", source) == (source, "test")
    assert look(source, held_out(source, "train", None)).shared == 1


def test_an_empty_file(write):
    report = look(write([]))
    assert (report.rows, report.pairs, report.lengths, report.too_long) == (0, 0, {}, 0.0)


@real
@pytest.mark.parametrize(
    ("file", "form", "rows", "pairs", "ties"),
    [
        ("hh_rlhf_helpful/test.jsonl.gz", "HH-RLHF transcripts", 4000, 3997, 0),
        ("finegrained_qa/dev_feedback.json.gz", "fine-grained QA: four predictions", 500, 3000, 384),
        ("pandalm/testset-v1.json", "PandaLM: votes of several annotators", 999, 938, 103),
    ],
)
def test_real_files(file, form, rows, pairs, ties):
    report = look(str(REAL / file))
    assert (report.format, report.rows, report.pairs, report.ties) == (form, rows, pairs, ties)
    assert report.longer_wins > 0.5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """A hundred thousand rows more may take the 28 bytes a pair that are kept, not the rows."""
    import subprocess
    import sys

    code = (
        "import resource, sys; from lorarlhf.data.inspect import *; "
        "inspect_source(sys.argv[1], 'train', {}, characters, 99); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (1_000, 100_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps(pair(f"{number} {'word ' * 50}", f"{'yes ' * 50}", f"{'no ' * 50}")) + "\n")
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert path.stat().st_size > 50e6
    assert peaks[1] - peaks[0] < 20_000  # KiB

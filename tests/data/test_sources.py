"""Rows from every kind of source, and what is said when one cannot be read."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from lorarlhf.data import hub, row_cache, sources
from lorarlhf.data.rows import BadRow
from lorarlhf.data.sources import ROW_CACHE, is_path, iter_rows, splits_of
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Source

ROWS = [
    {"prompt": "Why?", "chosen": 'Because, "so"\nit is.', "rejected": "No."},
    {"prompt": "1", "chosen": "2", "rejected": "é"},
]


def read(source):
    return list(iter_rows(str(source), "train"))


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_counts_lines_and_skips_blank_ones(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps(ROWS[0]) + "\r\n\n  \n" + json.dumps(ROWS[1], ensure_ascii=False))
    assert read(path) == [(f"{path}:1", ROWS[0]), (f"{path}:4", ROWS[1])]


def test_jsonl_gz(tmp_path):
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(lines(ROWS).encode()))
    assert read(path) == [(f"{path}:1", ROWS[0]), (f"{path}:2", ROWS[1])]


@pytest.mark.parametrize("content", [ROWS, {"version": 1, "data": ROWS}])
def test_json(tmp_path, content):
    path = write(tmp_path, "a.json", json.dumps(content))
    assert read(path) == [(f"{path}: row 1", ROWS[0]), (f"{path}: row 2", ROWS[1])]


def test_csv_keeps_numbers_as_text_and_line_breaks_in_quotes(tmp_path):
    long = "x" * 200_000
    content = f'\ufeffprompt,chosen,rejected\r\nWhy?,"Because, ""so""\nit is.",No.\r\n1,2,é\r\n{long},a,b\r\n'
    path = write(tmp_path, "a.csv", content)
    assert read(path) == [
        (f"{path}: row 1", ROWS[0]),
        (f"{path}: row 2", ROWS[1]),
        (f"{path}: row 3", {"prompt": long, "chosen": "a", "rejected": "b"}),
    ]


def test_tsv(tmp_path):
    path = write(tmp_path, "a.tsv", 'prompt\tchosen\trejected\nWhy, "so"?\t"Because,\n\tso"\tNo.\n')
    assert read(path) == [(f"{path}: row 1", {"prompt": 'Why, "so"?', "chosen": "Because,\n\tso", "rejected": "No."})]


def test_json_gz(tmp_path):
    path = write(tmp_path, "a.json.gz", gzip.compress(json.dumps(ROWS).encode()))
    assert [row for _, row in read(path)] == ROWS


def test_saved_folder(tmp_path):
    table, parts = tmp_path / "table", tmp_path / "parts"
    rows = [{"prompt": [{"role": "user", "content": str(i)}], "score": i / 2} for i in range(3)]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(table)
    datasets.DatasetDict(train=saved, other=saved.select([2])).save_to_disk(parts)
    assert read(table) == [(f"{table}: row {i + 1}", row) for i, row in enumerate(rows)]
    assert read(parts) == [(f"{parts}: row {i + 1}", row) for i, row in enumerate(rows)]
    assert (splits_of(str(table)), splits_of(str(parts))) == ([], ["train", "other"])
    with pytest.raises(UserError, match="no split 'test', it has train, other"):
        list(iter_rows(str(parts), "test"))
    (table / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="cannot read this folder"):
        read(table)


def test_parquet(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": str(i)}], "score": i / 2} for i in range(2500)]
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    assert read(path) == [(f"{path}: row {i + 1}", row) for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ":2", "not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', ":2", "not a JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2", "not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xed\xa0\x80"}\n', ":2", "not UTF-8"),  # half of a surrogate pair
        ("a.json", b'[{"a": 1}, "text"]', ": row 2", "not a JSON object"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", ": row 2", "more fields than the header"),
    ],
)
def test_a_row_that_is_no_object_comes_as_a_bad_row_and_reading_goes_on(tmp_path, name, content, place, reason):
    path = write(tmp_path, name, content)
    (_, first), (location, bad) = read(path)
    assert isinstance(first, dict)
    assert location == f"{path}{place}"
    assert isinstance(bad, BadRow)
    assert reason in str(bad)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b'{"a": 1}\n{"a": 2}',
            "a.json:2: not valid JSON (Extra data); a file with one object a line must end in .jsonl",
        ),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', "a.json:2: not valid JSON"),
        ("a.json", b'{"a": [1], "b": [2]}', "must hold a list of objects"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-12], "cannot be read"),
        ("a.parquet", b"plain", "not a valid parquet file"),
        ("a.csv", b'a,b\n1,2\n1,"2\n', "a.csv:3: not valid CSV"),
        (
            "a.txt",
            b"a\tb\n",
            "unknown kind of file; use .jsonl, .jsonl.gz, .json, .json.gz, .csv, .tsv or .parquet, or a Hub id",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError) as raised:
        read(path)
    assert str(tmp_path) in str(raised.value)
    assert message in str(raised.value)


def test_a_missing_file_suggests_near_names(tmp_path):
    write(tmp_path, "preferences.jsonl", "")
    with pytest.raises(UserError, match=r"preference\.jsonl: no such file; did you mean preferences\.jsonl\?"):
        read(tmp_path / "preference.jsonl")
    with pytest.raises(UserError, match="no folder"):
        read(tmp_path / "nowhere" / "preferences.jsonl")
    with pytest.raises(UserError, match="cannot read this folder"):
        read(tmp_path)


def test_what_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert all(map(is_path, ["missing.jsonl", "./x", "/x", "~/x", "../x", "a/b.parquet", "there"]))
    assert not any(map(is_path, ["Anthropic/hh-rlhf", "imdb"]))


def test_hub(fake_hub):
    fetched = fake_hub({"train": ROWS, "test": ROWS[:1]})
    assert list(iter_rows("owner/pairs", "test")) == [("owner/pairs (test): row 1", ROWS[0])]
    assert len(list(iter_rows("owner/pairs", "train"))) == 2
    assert len(fetched) == 1, "fetched again"
    with pytest.raises(UserError, match="no split 'validation', it has train, test"):
        list(iter_rows("owner/pairs", "validation"))
    with pytest.raises(UserError, match=r"owner/other: no such file, and no such data set on the Hub"):
        list(iter_rows("owner/other", "train"))
    with pytest.raises(UserError, match="neither a file nor the form of a Hub id"):
        list(iter_rows("some file", "train"))


def test_which_part_of_a_hub_data_set(fake_hub):
    part = {"name": "helpful", "data_dir": "base", "revision": "v1"}
    fake_hub({"train": ROWS}, **part)
    assert len(list(iter_rows(Source(source="owner/pairs", **part), "train"))) == 2


def test_no_hub(monkeypatch):
    monkeypatch.setattr(hub, "has_revision", lambda source, revision: False)
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        list(iter_rows("owner/pairs", "train"))


@pytest.fixture
def whole_reads(monkeypatch):
    """The files that were read to their ends, one after the other."""
    done = []

    def reader(path, name, real=sources.READERS["jsonl"]):
        yield from real(path, name)
        done.append(path.name)

    monkeypatch.setitem(sources.READERS, "jsonl", reader)
    return done


def test_rows_are_kept_where_that_is_asked_for(tmp_path, whole_reads):
    path = write(tmp_path, "a.jsonl", lines(ROWS))
    expected = read(path)
    with ROW_CACHE:
        next(iter_rows(str(path), "train"))  # the first row alone is no reading
        assert read(path) == read(path) == expected
        assert len(whole_reads) == 2
        write(tmp_path, "a.jsonl", lines(ROWS[1:]))
        assert [row for _, row in read(path)] == ROWS[1:]
        with ROW_CACHE:
            assert [row for _, row in read(path)] == ROWS[1:]
    assert len(whole_reads) == 3
    read(path)
    assert len(whole_reads) == 4


def test_rows_that_were_let_go_are_read_again(tmp_path, whole_reads):
    path = write(tmp_path, "a.jsonl", lines(ROWS))
    ROW_CACHE.clear()  # nothing is kept, and nothing happens
    with ROW_CACHE:
        expected = read(path)
        ROW_CACHE.clear()
        assert read(path) == read(path) == expected
    assert len(whole_reads) == 2


def test_rows_of_a_large_file_are_not_kept(tmp_path, whole_reads, monkeypatch):
    path = write(tmp_path, "a.jsonl", lines(ROWS))
    monkeypatch.setattr(row_cache, "MOST_BYTES", path.stat().st_size - 1)
    with ROW_CACHE:
        assert read(path) == read(path)
    assert len(whole_reads) == 2

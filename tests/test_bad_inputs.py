"""Inputs that nobody means: one line that says what and where, exit status 2, and nothing changed on disk."""

import gzip
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorarlhf.cli.main import main

DEEP = "[" * 5000 + "]" * 5000
ROW = '{"prompt": "Q?", "chosen": "a", "rejected": "b"}\n'


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """`refused(*arguments)`: the line that a command, called in an empty folder, says as it ends with 2."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        sys.argv = ["lorarlhf", *map(str, arguments)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr().err
        assert exit_.value.code == 2, said
        assert "Traceback" not in said
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        said.encode()
        return said

    return call


def one_line(said):
    assert said.count("\n") == 1, said
    assert len(said) < 600
    return said


def impossible_dates(path):
    day = pa.array([2**31 - 1, 1], pa.int32()).cast(pa.date32())
    columns = {"prompt": ["Q?"] * 2, "chosen": ["a"] * 2, "rejected": ["b"] * 2, "day": day}
    pq.write_table(pa.table(columns), path)


def flipped_byte(path):
    pq.write_table(pa.table({"prompt": ["Q?"] * 2, "chosen": ["a"] * 2, "rejected": ["b"] * 2}), path)
    content = bytearray(path.read_bytes())
    content[4] ^= 0xFF  # of the first page's header
    path.write_bytes(content)


def not_utf8(path):
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"prompt": text, "chosen": ["a"], "rejected": ["b"]}), path)


DATA = {
    "deep.jsonl": (ROW + DEEP + "\n", "deep.jsonl:2: nested too deep"),
    "digits.jsonl": (ROW + '{"a": ' + "9" * 5000 + "}\n", "digits.jsonl:2: a number of more digits"),
    "half.jsonl": (ROW + ROW.replace("Q?", "\\ud800"), "half.jsonl:2: half of a surrogate pair"),
    "deep.json": (DEEP, "deep.json: nested too deep"),
    "digits.json": ("[" + "9" * 5000 + "]", "digits.json: a number of more digits"),
    "half.json": ("[" + ROW.replace("Q?", r"\udfff") + "]", "half.json: holds half of a surrogate"),
    "bomb.jsonl.gz": (gzip.compress(b"\n" * 2**27), "unpacks to more than 200 times its size"),
    "line.jsonl.gz": (gzip.compress(b" " * (2**26 + 2)), "a line of more than 67,108,864 bytes"),
    "bomb.json.gz": (gzip.compress(b" " * 2**27), "unpacks to more than 200 times its size"),
    "torn.jsonl.gz": (gzip.compress(ROW.encode() * 100)[:-9], "cannot be read"),
    "dates.parquet": (impossible_dates, "dates.parquet: not a valid parquet file"),
    "flipped.parquet": (flipped_byte, "flipped.parquet: cannot be read"),
    "utf8.parquet": (not_utf8, "utf8.parquet: not a valid parquet file"),
}


@pytest.mark.parametrize("name", DATA)
def test_data(refused, tmp_path, name):
    content, reason = DATA[name]
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert reason in one_line(refused("reward", "--recipe", "demo", "--dataset", name, "--output-dir", "out"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_dict.json", "[]"),
        ("dataset_dict.json", "{}"),
        ("dataset_dict.json", '{"splits": ["../train", "test"]}'),
        ("dataset_dict.json", '{"splits": {"train": 1}}'),
        ("dataset_dict.json", DEEP),
        ("state.json", "[]"),
        ("state.json", '{"_data_files": 3}'),
        ("state.json", DEEP),
    ],
)
def test_folders_of_datasets(refused, tmp_path, name, content):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / name).write_text(content)
    assert "saved" in one_line(refused("data", "inspect", "saved"))


RECIPES = {
    "extends: demo\nseed: 0x" + "f" * 100_000: "cannot be read as int",
    "extends: demo\nseed: " + "9" * 100_000: "cannot be read as int",
    "extends: demo\nseed: 4294967296": "expected less than 4294967296",
    "extends: demo\nppo: {temperature: .inf}": "expected a finite number",
    "extends: demo\nppo: {optim: adamw_torch, kl_coef: -.INF}": "expected a finite number",
    "extends: demo\n" + "".join(f"k{i}: 1\n" for i in range(3000)): "more than 2,000 keys",
    "#" * 2**19: "more than 262,144 bytes",
    "extends: " + "x" * 300 + ".yaml": "no such name can be",
    "extends: ~nobody-of-that-name/x.yaml": "there is no such user here",
    'extends: "a\\0.yaml"': "no such",
    "extends: demo\nrequires: [os.path]": "expected a package's name",
}


@pytest.mark.parametrize("text", RECIPES, ids=list(RECIPES.values()))
def test_recipes(refused, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    assert RECIPES[text] in one_line(refused("plan", "--recipe", "mine.yaml"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("plan --recipe ~nobody-of-that-name/x.yaml", "there is no such user here"),
        (f"plan --recipe {'x' * 300}.yaml", "no such name can be"),
        (f"plan --recipe {'x' * 300}", "no recipe of that name"),
        ("plan --recipe [red]demo[/]", "no recipe of that name"),
        (f"reward --recipe demo --dry-run --dataset {'x' * 300}", "no such name can be"),
        ("reward --recipe demo --dry-run --dataset ~nobody-of-that-name/x.jsonl", "there is no such user here"),
        ("reward --recipe demo --dry-run --set reward.optim=adamw_troch", "transformers knows no adamw_troch"),
        ("reward --recipe demo --dry-run --set reward.report_to=[comet]", "expected 'tensorboard'"),
        ("reward --recipe demo --set model.attn_implementation=flash_attention_2", "flash-attn"),
        ("reward --recipe demo --dry-run --output-dir file", "file is a file, and a run is a folder"),
        ("reward --recipe demo --dry-run --output-dir file/run", "file is a file, and a run is a folder"),
        (f"run --recipe demo --output-dir {'x' * 300}", "no such name can be"),
        (f"report --run {'x' * 300}", "no such name can be"),
        ("reward --recipe demo --dry-run --model -x", "model.name: Repo id must use"),
        ("reward --recipe demo --dry-run --model /dev/zero", "model.name: Repo id must be in the form"),
        ("run --recipe demo --dry-run --output-dir file", "file is a file, and a run is a folder"),
    ],
)
def test_options(refused, tmp_path, arguments, reason):
    (tmp_path / "file").touch()
    assert reason in one_line(refused(*arguments.split()))


@pytest.mark.parametrize(
    "arguments",
    [
        "demo --seed 4294967296",
        "demo --seed -1",
        "plan --recipe demo --gpu-memory inf",
        "plan --recipe demo --gpu-memory nan",
        "chat --model x --temperature nan",
        "sample --model x --prompts p --out o.jsonl --temperature inf",
        "sample --model x --prompts p --out o.jsonl --seed 99999999999999999999",
        "collect export l.jsonl --pairs p.jsonl --out o.jsonl --min-agreement nan",
        "data split f.jsonl --test-size nan",
    ],
)
def test_numbers(refused, arguments):
    """Typer says these in a box of its own."""
    assert "Invalid value" in refused(*arguments.split()) or "Missing" in refused(*arguments.split())


def test_a_source_of_no_name(refused):
    assert "a source of no name" in one_line(refused("data", "convert", "", "new.jsonl"))


def test_rows_are_written_as_they_are_read(tmp_path):
    """What half.jsonl is refused for: such text could be read and not written."""
    with pytest.raises(UnicodeEncodeError):
        json.dumps(json.loads('"\\ud800"'), ensure_ascii=False).encode()

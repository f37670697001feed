"""YAML 1.2's core schema, plain data, and lines."""

import pytest

from lorarlhf.errors import UserError
from lorarlhf.recipe.yaml import dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("010", 10),
        ("0x1F", 31),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("~", None),
        ("null", None),
        ("", None),
        ("10_000", "10_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("nan", "nan"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("on: 1", {"on": 1}),
    ],
)
def test_value(text, value):
    document = parse_yaml(text)
    assert document.faults == []
    assert document.data == value
    assert type(document.data) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", 3, "given twice, on lines 1 and 3"),
        ("a: {b: 1,\n b: 2}", 2, "given twice, on lines 1 and 2"),
        ("a: .nan", 1, "expected a finite number"),
        ("a: [1,\n -.inf]", 2, "expected a finite number"),
        ("a: 1e999", 1, "expected a finite number"),
        ("a: !!python/name:os.system x", 1, "!!python/name:os.system is not allowed"),
        ("a: !!python/object/apply:os.system [x]", 1, "is not allowed"),
        ("a: !!set {x}", 1, "!!set is not allowed"),
        ("a: !!int x", 1, "cannot be read as int"),
        ("a: " + "9" * 5000, 1, "cannot be read as int"),
        ('a: "\\ud800"', 1, "cannot be read as str"),
        ("? [a]\n: 1", 1, "a key must be one word"),
        ("a: &x 1\nb: *x", 2, "an alias"),
        ("[" * 100, 1, "nested more than"),
        ("a: [", 1, "not valid YAML"),
        ("a: 1\n\tb: 2", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML"),
        ("a: 1\nb: \x07", 2, "U+0007"),
        ('a: "\\UFFFFFFFF"', 1, "not valid YAML"),
    ],
)
def test_fault(text, line, message):
    (fault,) = parse_yaml(text).faults
    assert (fault.line, message in fault.message) == (line, True), fault
    assert "\n" not in fault.message


def test_lines_of_every_key_and_item():
    lines = parse_yaml("# comment\na:\n  b: 1\n  c:\n  - x\n  - d: 2\n").lines
    assert lines == {("a",): 2, ("a", "b"): 3, ("a", "c"): 4, ("a", "c", 0): 5, ("a", "c", 1): 6, ("a", "c", 1, "d"): 6}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n", "expected `key: value` lines, got a list"),
        (b"hello", "got 'hello'"),
        (b"a: 1\nb: \xff\xfe", ":2: not UTF-8"),
        (b"a: [\n", ":2: not valid YAML"),
    ],
)
def test_read_refuses(tmp_path, raw, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")


def test_read_names_what_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path)


def test_dump_round_trips_what_looks_like_something_else():
    data = {"text": ["1e-5", "yes", "null", "", "0x1F", "1", ".nan", "a: b", "é\n"], "float": 1e-05, "none": None}
    assert parse_yaml(dump_yaml(data)).data == data

"""YAML without surprises: the core schema of YAML 1.2, plain data only, and the line of every key.

PyYAML alone follows YAML 1.1: it reads `1e-5` as text, `yes` as true, and keeps the last of two equal keys.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorarlhf.errors import UserError

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 20
MOST_BYTES, MOST_KEYS = 2**18, 2_000  # of a file; the largest recipe has a tenth
MOST_DIGITS = 300  # of a number
TAG = "tag:yaml.org,2002:"

# https://yaml.org/spec/1.2.2/#103-core-schema
CORE_SCHEMA = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}


@dataclass(frozen=True)
class Fault:
    """Something wrong with one key or value of a document that can otherwise be read."""

    path: KeyPath
    line: int
    message: str


@dataclass
class Document:
    """Plain data (None, bool, int, float, str, list, dict) with the line, from 1, of every key and list item."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema, and without aliases, which can make a small file huge or endless."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._refuse("an alias (*name) is not plain data")
        if self.depth >= MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse(self, problem: str) -> None:
        mark: Any = self.peek_event().start_mark
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 takes for something other than text."""


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern in CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(TAG + _kind, _pattern, None)
    _Dumper.add_implicit_resolver(TAG + _kind, _pattern, None)


def read_yaml(path: Path) -> Document:
    """The mapping in a file.

    Raises:
        UserError: no such file, not UTF-8, not YAML, empty, or not a mapping.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: more than {MOST_BYTES:,} bytes, which no recipe has; name another file")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error
    document = parse_yaml(text)
    if len(document.lines) > MOST_KEYS:
        raise UserError(f"{path}: more than {MOST_KEYS:,} keys, which no recipe has; name another file")
    if document.data is None and document.faults:
        raise UserError(f"{path}:{document.faults[0].line}: {document.faults[0].message}")
    if document.data is None:
        raise UserError(f"{path}: the file is empty; write `key: value` lines")
    if not isinstance(document.data, dict):
        raise UserError(f"{path}: expected `key: value` lines, got {show(document.data)}")
    return document


def parse_yaml(text: str) -> Document:
    """One YAML document of any kind; what is wrong comes back as faults. Not YAML at all is one fault and no data."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        return _not_yaml(number, f"the character U+{ord(text[error.position]):04X} is not allowed; remove it")
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        return _not_yaml(mark.line + 1, f"{error.problem} (column {mark.column + 1}); check indentation and quotes")
    except (ValueError, OverflowError):  # PyYAML hands an impossible "\Uffffffff" to chr()
        return _not_yaml(1, "impossible \\U escape in double quotes; correct it")
    document = Document()
    if node is not None:
        document.data = _build(node, (), document)
    return document


def dump_yaml(data: Any) -> str:
    """YAML that `parse_yaml` reads back to equal data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def flow(value: Any) -> str:
    """The same of one value, on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=sys.maxsize
    )
    return text.removesuffix("...\n").rstrip("\n")


def show(value: object) -> str:
    """A value in a message: as YAML writes it, on one line, never long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _not_yaml(number: int, message: str) -> Document:
    return Document(faults=[Fault((), number, f"not valid YAML: {message}")])


def _build(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        _check_tag(node, "seq", path, document)
        items = []
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = _line(item)
            items.append(_build(item, (*path, index), document))
        return items
    return _build_scalar(node, path, document)


def _build_mapping(node: yaml.MappingNode, path: KeyPath, document: Document) -> dict[str, Any]:
    _check_tag(node, "map", path, document)
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append(Fault(path, _line(key_node), "a key must be one word; write `key: value`"))
            continue
        here = (*path, key_node.value)
        if key_node.value in data:
            first = document.lines[here]
            message = f"given twice, on lines {first} and {_line(key_node)}; remove one of them"
            document.faults.append(Fault(here, _line(key_node), message))
            continue
        document.lines[here] = _line(key_node)
        data[key_node.value] = _build(value_node, here, document)
    return data


def _build_scalar(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    kind = node.tag.removeprefix(TAG)
    if kind not in SCALARS:
        _check_tag(node, "str", path, document)
        return node.value
    try:
        value = SCALARS[kind](node.value)
    except (ValueError, KeyError):
        document.faults.append(Fault(path, _line(node), f"{show(node.value)} cannot be read as {kind}; correct it"))
        return node.value
    if isinstance(value, float) and not math.isfinite(value):
        message = f"expected a finite number, got {node.value}; NaN, infinity and numbers beyond 1.7e308 are refused"
        document.faults.append(Fault(path, _line(node), message))
    return value


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("a number of so many digits")
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _real(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _text(text: str) -> str:
    text.encode("utf-8")  # a lone surrogate ("\ud800") is a ValueError
    return text


SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _integer,
    "float": _real,
    "str": _text,
}


def _check_tag(node: yaml.Node, expected: str, path: KeyPath, document: Document) -> None:
    if node.tag != TAG + expected:
        tag = node.tag.replace(TAG, "!!")
        document.faults.append(Fault(path, _line(node), f"the tag {tag} is not allowed, only plain data; remove it"))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1

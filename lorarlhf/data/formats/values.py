"""Single values of a row, checked: each function returns what was asked for or raises BadRow with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from lorarlhf.data.rows import BadRow, Message

Row = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")


def kind_of(value: object) -> str:
    """What a value is, without quoting it."""
    kinds = {str: "text", list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "missing"
    if value == [] or (isinstance(value, str) and not value.strip()):
        return "empty"
    return kinds.get(type(value), f"a {type(value).__name__}")


def is_text(*columns: str) -> Callable[[Row], bool]:
    """Whether all of these columns hold text that is not blank."""
    return lambda row: all(isinstance(row[column], str) and row[column].strip() for column in columns)


def is_list(*columns: str) -> Callable[[Row], bool]:
    """Whether all of these columns hold lists that are not empty."""
    return lambda row: all(isinstance(row[column], list) and row[column] for column in columns)


def is_object(*columns: str) -> Callable[[Row], bool]:
    """Whether all of these columns hold objects that are not empty."""
    return lambda row: all(isinstance(row[column], dict) and row[column] for column in columns)


def text(row: Mapping[str, Any], column: str) -> str:
    """Text that is not blank."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        reason = "" if value is None or isinstance(value, str) else ", not text"
        raise BadRow(f"{column} is {kind_of(value)}{reason}")
    return value


def number(row: Mapping[str, Any], column: str) -> float:
    """A finite number; text that spells one, too."""
    value = row.get(column)
    try:  # in CSV, numbers are text
        parsed = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        parsed = math.nan
    if not math.isfinite(parsed):
        raise BadRow(f"{column} is {kind_of(value)}" + ("" if value is None else ", not a finite number"))
    return parsed


def one_of(row: Mapping[str, Any], column: str, meanings: Mapping[str, int]) -> int:
    """What a value stands for; the keys are text, as they are in CSV."""
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    meaning = meanings.get(str(value).strip())
    if meaning is None:
        raise BadRow(f"{column} is " + ("missing" if value is None else f"not one of {', '.join(meanings)}"))
    return meaning


def true(row: Mapping[str, Any], column: str) -> bool:
    """A flag that may be left out."""
    if row.get(column) in (None, ""):
        return False
    return bool(one_of(row, column, {"True": 1, "true": 1, "1": 1, "False": 0, "false": 0, "0": 0}))


def records(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """A list of objects."""
    value = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise BadRow(f"{column} is {kind_of(value)}" + (", not a list of objects" if value else ""))
    return value


def texts(row: Mapping[str, Any], column: str) -> list[str]:
    """A list of texts, itself perhaps written as JSON."""
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow(f"{column} is text, not a JSON list") from error
    if not isinstance(value, list) or not value:
        raise BadRow(f"{column} is {kind_of(value)}" + (", not a list" if value else ""))
    if not all(isinstance(item, str) and item.strip() for item in value):
        raise BadRow(f"{column} has an entry that is empty or not text")
    return value


def messages(row: Mapping[str, Any], column: str) -> list[Message]:
    """A conversation: each turn with a known role and text that is not blank."""
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{column} is {kind_of(value)}" + (", not a list of messages" if value else ""))
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRow(f"{column} has a message without role and content as text")
        if message.get("role") not in ROLES:
            raise BadRow(f"{column} has a message whose role is not one of {', '.join(ROLES)}")
        if not message["content"].strip():
            raise BadRow(f"{column} has an empty message")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def asked(row: Mapping[str, Any], column: str) -> list[Message]:
    """Text as one message of the user's."""
    return [{"role": "user", "content": text(row, column)}]


def answered(row: Mapping[str, Any], column: str) -> list[Message]:
    """Text as one message of the assistant's."""
    return [{"role": "assistant", "content": text(row, column)}]

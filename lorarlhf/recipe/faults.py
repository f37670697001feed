"""What pydantic found wrong with a recipe, said in plain words and with the file and line of each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lorarlhf.recipe.keys import dotted, section_at, section_in, suggestion
from lorarlhf.recipe.yaml import CORE_SCHEMA, KeyPath, show

# What a value should have been, for pydantic's error types; {} is filled in from the error's context.
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "a mapping of keys",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "string_too_short": "text that is not empty",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


def explain(
    error: ValidationError, data: Mapping[str, Any], origins: Mapping[KeyPath, str], file: str
) -> dict[KeyPath, str]:
    """One line `ORIGIN: a.b.c: what is wrong; what to do` for each faulty key.

    Args:
        data: what was validated.
        origins: who wrote a key: `FILE:LINE`, `--option` or `--set a.b=v`. Later writers come later.
        file: named where nobody wrote the key, because it is missing.
    """
    groups: dict[KeyPath, list[Any]] = {}
    for fault in error.errors(include_url=False):
        groups.setdefault(_key_path(fault, data), []).append(fault)
    # A union complains once for each of its members: only the complaint that goes deepest is about what was meant.
    deepest = {path: faults for path, faults in groups.items() if not any(_is_below(other, path) for other in groups)}
    lines = {}
    for path, faults in deepest.items():
        message = _message(path, faults)
        if faults[0]["type"] == "missing":
            path = _first_required(path)
        lines[path] = line(_origin(path, message, origins) or file, path, message)
    return lines


def line(origin: str, path: KeyPath, message: str) -> str:
    """`ORIGIN: a.b.c: message`, with the key left out where the origin already names it."""
    return (
        f"{origin}: {message}"
        if origin.startswith(f"--set {dotted(path)}=")
        else f"{origin}: {dotted(path)}: {message}"
    )


def _key_path(fault: Mapping[str, Any], data: Any) -> KeyPath:
    """The fault's place in the data, without the names of union members that pydantic puts in between."""
    path: list[str | int] = []
    for part in fault["loc"]:
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            path.append(part)
            data = data[part]
    if fault["type"] == "missing":
        path.append(fault["loc"][-1])
    return tuple(path)


def _is_below(path: KeyPath, above: KeyPath) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _message(path: KeyPath, faults: list[Any]) -> str:
    first = faults[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key; {suggestion(path)}"
    if first["type"] == "missing":
        return "required but missing; add it"
    ours = [str(fault["ctx"]["error"]) for fault in faults if fault["type"] == "value_error"]
    if ours:
        return ours[0]
    if any(fault["type"] not in EXPECTED for fault in faults):
        return f"{first['msg']}, got {show(first['input'])}"
    expected = " or ".join(EXPECTED[fault["type"]].format_map(fault.get("ctx", {})) for fault in faults)
    return f"expected {expected}, got {show(first['input'])}{_remedy(first['type'], first['input'])}"


def _remedy(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return "; put it in quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _reads_as_number(value):
        return "; remove the quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _reads_as_number(value.replace("_", "")):
        return "; remove the underscores"
    if kind == "model_type" and value is None:
        return "; give it keys or remove the line"
    return ""


def _reads_as_number(text: str) -> bool:
    return any(CORE_SCHEMA[kind].match(text) for kind in ("int", "float"))


def _first_required(path: KeyPath) -> KeyPath:
    """`model` is missing because `model.name` is: name the key that a person has to write."""
    section = section_in(section_at(path[:-1]).model_fields[str(path[-1])].annotation)
    required = [name for name, field in section.model_fields.items() if field.is_required()] if section else []
    return (*path, required[0]) if required else path


def _origin(path: KeyPath, message: str, origins: Mapping[KeyPath, str]) -> str | None:
    """Who wrote the key; of a rule between keys of a section, who was the last to write one that the message names."""
    words = message.replace(",", " ").split()
    named = [origin for other, origin in origins.items() if other[:-1] == path and other[-1] in words]
    if named:
        return named[-1]
    above = [origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origins]
    below = [
        origin for other, origin in origins.items() if _is_below(other, path)
    ]  # of --set a.b=v where a is no section
    return next(iter(above + below), None)

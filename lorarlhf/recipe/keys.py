"""The keys of a recipe: what each takes, what it is if left out, and what it does, as `sections` has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import Recipe, Section
from lorarlhf.recipe.yaml import KeyPath, flow

REQUIRED = "required"


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: of the sections it is in, and its own name.
        description: sentences, on one line.
        section: what it holds keys of its own in, None if it is a value.
    """

    path: KeyPath
    field: FieldInfo
    description: str
    section: type[Section] | None

    @property
    def name(self) -> str:
        return str(self.path[-1])

    @property
    def kind(self) -> str:
        """What it takes, in words, as `number, at least 0`."""
        return in_words(TypeAdapter(self.field.rebuild_annotation()).json_schema())

    @property
    def default(self) -> str:
        """What it is if left out, as YAML writes it on one line; nothing of a section, which has its keys."""
        if self.field.is_required():
            return REQUIRED
        default = self.field.default
        return "" if isinstance(default, Section) else flow(default)

    @property
    def keys(self) -> list[Key]:
        """Those in its section."""
        return keys_of(self.section, self.path) if self.section else []


def keys_of(section: type[Section] = Recipe, above: KeyPath = ()) -> list[Key]:
    """The keys of one section, in order."""
    return [
        Key((*above, name), field, one_line(field.description or ""), section_in(field.annotation))
        for name, field in section.model_fields.items()
    ]


def all_keys(keys: list[Key] | None = None) -> Iterator[Key]:
    """Every key, sections too, from the top down."""
    for key in keys_of() if keys is None else keys:
        yield key
        yield from all_keys(key.keys)


def find_key(text: str) -> Key:
    """The key that `ppo.kl_coef` names.

    Raises:
        UserError: there is none of that name; it says which are near.
    """
    keys = {dotted(key.path): key for key in all_keys()}
    if text in keys:
        return keys[text]
    raise UserError(f"{text}: no key of a recipe; {suggestion(tuple(text.split('.')))}")


def suggestion(path: KeyPath) -> str:
    """What somebody may have meant by a key that there is not."""
    key = str(path[-1])
    known = list(section_at(path[:-1]).model_fields)
    hints = [f"did you mean {near}?" for near in get_close_matches(key.lower(), known, n=1, cutoff=0.5)]
    elsewhere = sorted((other.path for other in all_keys() if other.name == key), key=len)
    if elsewhere:
        hints.append(f"there is {' and '.join(dotted(other) for other in elsewhere[:3])}")
    return "; ".join(hints) or f"known keys: {', '.join(known)}"


def dotted(path: KeyPath) -> str:
    """`("ppo", "reward_functions", 0)` as `ppo.reward_functions[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def section_at(path: KeyPath) -> type[Section]:
    """The section that a path leads into, as far as there are such sections."""
    section: type[Section] = Recipe
    for part in path:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        section = (section_in(field.annotation) if field else None) or section
    return section


def section_in(annotation: Any) -> type[Section] | None:
    """The section among the types that a key may have."""
    if get_origin(annotation) is None:
        return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
    return next((section for section in map(section_in, get_args(annotation)) if section), None)


def one_line(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


# Bounds of numbers and lengths of text, as JSON schema calls them.
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


def in_words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema takes, for people: `whole number, at least 1, or null`."""
    if "anyOf" in schema:
        return _either([words for part in schema["anyOf"] for words in _choices(part)])
    if "const" in schema or "enum" in schema:
        return _either(_choices(schema))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {in_words(schema['items'])}"
    if kind in KINDS:
        return ", ".join([KINDS[kind], *(text.format(schema[name]) for name, text in BOUNDS.items() if name in schema)])
    return "mapping"


def _choices(schema: Mapping[str, Any]) -> list[str]:
    if "const" in schema or "enum" in schema:
        return [f"`{value}`" for value in schema.get("enum", [schema.get("const")])]
    return [in_words(schema)]


def _either(words: list[str]) -> str:
    *first, last = words
    between = ", or " if any("," in word for word in first) else " or "
    return f"{', '.join(first)}{between}{last}" if first else last

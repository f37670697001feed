"""A recipe written out: every key, with what it does as a comment above it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from lorarlhf.recipe.keys import Key, keys_of
from lorarlhf.recipe.sections import Recipe
from lorarlhf.recipe.yaml import dump_yaml

WIDTH = 100


def full_text(recipe: Recipe, header: str) -> str:
    """YAML that loads to an equal recipe and extends no other.

    Args:
        header: comment lines to begin with.
    """
    return header + "\n" + "\n".join(_lines(recipe.model_dump(mode="json"), keys_of(), 0)) + "\n"


def header_of(text: str) -> str:
    """The comment that a recipe begins with."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(f"{line}\n" for line in lines[:end])


def comment(text: str, depth: int = 0) -> list[str]:
    """Lines of a comment, indented for keys so deep."""
    indent = "  " * depth + "# "
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _lines(data: Mapping[str, Any], keys: list[Key], depth: int) -> list[str]:
    lines: list[str] = []
    for key in keys:
        value = data[key.name]
        if depth == 0 and lines:
            lines.append("")
        lines += comment(key.description, depth)
        if key.keys and isinstance(value, dict):
            lines += [f"{'  ' * depth}{key.name}:", *_lines(value, key.keys, depth + 1)]
        else:
            lines += textwrap.indent(dump_yaml({key.name: value}).rstrip("\n"), "  " * depth).splitlines()
    return lines

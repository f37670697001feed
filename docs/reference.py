"""Writes docs/recipe.md and recipes/schema.json from the recipe's sections: `make reference`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorarlhf.recipe.keys import Key, dotted, keys_of, one_line
from lorarlhf.recipe.schema import SHIPPED_SCHEMA, schema_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipe.md"
SCHEMA = ROOT / "recipes" / SHIPPED_SCHEMA

OPENING = """\
# Recipe keys

<!-- Written by `make reference` from lorarlhf/recipe/sections; change it there. -->

Every key of a [recipe](recipes.md). `lorarlhf recipes explain ppo.kl_coef` says the same of one, with `--recipe NAME`
its value there and the file and line that set it; `lorarlhf recipes copy NAME mine.yaml --full` writes them all out.
Beside these a recipe may have `extends`, the one that it changes.
"""


def page() -> str:
    """The page: a table for each section, with what others of its kind have already left out."""
    top = keys_of()
    values = [key for key in top if not key.keys]
    seen: dict[str, Key] = {}
    parts = [OPENING, _table(values)]
    for key in top:
        if key.keys:
            parts += list(_section(key, seen))
    return "\n".join(parts)


def _section(section: Key, seen: dict[str, Key]) -> Iterator[str]:
    yield f"## {dotted(section.path)}\n"
    yield f"{one_line((section.section.__doc__ if section.section else None) or '')}\n"
    known = [key for key in section.keys if _is_known(key, seen)]
    if known:
        where = dict.fromkeys(f"`{dotted(seen[key.name].path[:-1])}`" for key in known)
        yield f"As in {' and '.join(where)}: {', '.join(f'`{key.name}`' for key in known)}.\n"
    new = [key for key in section.keys if key not in known]
    if new:
        yield _table(new)
    for key in new:
        seen[key.name] = key
    for key in section.keys:
        if key.keys:
            yield from _section(key, seen)


def _is_known(key: Key, seen: dict[str, Key]) -> bool:
    other = seen.get(key.name)
    return other is not None and (key.kind, key.default, key.description) == (
        other.kind,
        other.default,
        other.description,
    )


def _table(keys: list[Key]) -> str:
    rows = "".join(f"| `{key.name}` | {key.kind} | {_default(key)} | {_cell(key.description)} |\n" for key in keys)
    return f"| key | takes | if left out | what it does |\n|---|---|---|---|\n{rows}"


def _default(key: Key) -> str:
    return f"`{key.default}`" if key.default and not key.field.is_required() else key.default


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")

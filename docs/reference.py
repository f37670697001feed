"""Writes docs/recipe.md, the pages beside it and recipes/schema.json from the recipe's sections: `make reference`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorarlhf.recipe.keys import Key, dotted, keys_of, one_line
from lorarlhf.recipe.schema import SHIPPED_SCHEMA, schema_text

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SCHEMA = ROOT / "recipes" / SHIPPED_SCHEMA

NOTE = "<!-- Written by `make reference` from lorarlhf/recipe/sections; change it there. -->"
OPENING = f"""\
# Recipe keys

{NOTE}

The keys of a [recipe](recipes.md) are on four pages: whole recipe, model, adapters and export here,
[data](recipe-data.md), [sft and reward](recipe-training.md), [ppo](recipe-ppo.md). `lorarlhf recipes explain
ppo.kl_coef` says the same of one, with `--recipe NAME` its value there and the file and line that set it; `lorarlhf
recipes copy NAME mine.yaml --full` writes them all out. Beside these a recipe may have `extends`, the one that it
changes.
"""
# Sections of a page, in the order in which they are read: what stood before is not said again.
PAGES = {
    "recipe.md": (OPENING, ("model", "lora", "export")),
    "recipe-data.md": (f"# Recipe keys: data\n\n{NOTE}\n", ("data",)),
    "recipe-training.md": (f"# Recipe keys: sft and reward\n\n{NOTE}\n", ("sft", "reward")),
    "recipe-ppo.md": (f"# Recipe keys: ppo\n\n{NOTE}\n", ("ppo",)),
}


def pages() -> dict[Path, str]:
    """Each page: a table for each section, with what others of its kind have already left out."""
    sections = {key.name: key for key in keys_of() if key.keys}
    assert set(sections) == {name for _, names in PAGES.values() for name in names}
    seen: dict[str, tuple[str, Key]] = {}
    written = {}
    for page, (opening, names) in PAGES.items():
        parts = [opening]
        if page == "recipe.md":
            parts.append(_table([key for key in keys_of() if not key.keys]))
        for name in names:
            parts += list(_section(sections[name], page, seen))
        written[DOCS / page] = "\n".join(parts)
    return written


def _section(section: Key, page: str, seen: dict[str, tuple[str, Key]]) -> Iterator[str]:
    """A section and those within it.

    Args:
        seen: name to page and key of what stood before; those of the section are added.
    """
    yield f"## {dotted(section.path)}\n"
    yield f"{one_line((section.section.__doc__ if section.section else None) or '')}\n"
    known = [key for key in section.keys if _is_known(key, seen)]
    if known:
        yield f"As in {_where(known, page, seen)}: {', '.join(f'`{key.name}`' for key in known)}.\n"
    new = [key for key in section.keys if key not in known]
    if new:
        yield _table(new)
    for key in new:
        seen[key.name] = page, key
    alike: dict[str, list[str]] = {}
    for key in section.keys:
        if key.keys and all(_is_known(inner, seen) for inner in key.keys):
            alike.setdefault(_where(key.keys, page, seen), []).append(f"`{dotted(key.path)}`")
        elif key.keys:
            yield from _section(key, page, seen)
    for where, names in alike.items():
        yield f"The keys of {', '.join(names)} are those of {where}.\n"


def _where(keys: Sequence[Key], page: str, seen: dict[str, tuple[str, Key]]) -> str:
    """The sections in which these keys stood before, linked where that was on another page."""
    places = dict.fromkeys((seen[key.name][0], dotted(seen[key.name][1].path[:-1])) for key in keys)
    return " and ".join(
        f"`{name}`" if place == page else f"[`{name}`]({place}#{name.replace('.', '')})" for place, name in places
    )


def _is_known(key: Key, seen: dict[str, tuple[str, Key]]) -> bool:
    _, other = seen.get(key.name, ("", None))
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
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")

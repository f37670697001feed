"""A recipe's JSON schema, from which editors complete its keys, show their descriptions and mark mistakes.

Editors with the YAML language server (VS Code, Neovim, Zed, IntelliJ and others) find it by a line in the recipe. It
ships beside the recipes, and a copy of one gets it beside it: an address on the web would be the schema of another
version, a path into the installation would name folders of one machine.
"""

from __future__ import annotations

import json
import re
from typing import Any

from lorarlhf.recipe.keys import one_line
from lorarlhf.recipe.sections import Recipe

SHIPPED_SCHEMA = "schema.json"  # among the recipes that ship
COPIED_SCHEMA = "lorarlhf.schema.json"  # beside recipes elsewhere, where other schemas may lie
_MODELINE = re.compile(r"^# yaml-language-server: \$schema=.*$", re.MULTILINE)


def recipe_schema() -> dict[str, Any]:
    """What a recipe's file may hold: nothing is required of one that extends another."""
    schema = Recipe.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        _tidy(section, is_inherited=section["title"] not in ("WeightedFunction", "Source"))
    extends = {
        "type": ["string", "null"],
        "description": "The recipe that this one changes: one that ships, by name, or a path from this file's folder.",
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    schema["title"] = "lorarlhf recipe"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The same as the text of a file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def with_modeline(text: str, schema: str) -> str:
    """A recipe's text with its line for editors, if it has one, naming another file."""
    return _MODELINE.sub(modeline(schema), text)


def modeline(schema: str) -> str:
    """The line that tells editors which schema a recipe has."""
    return f"# yaml-language-server: $schema={schema}"


def _tidy(section: dict[str, Any], is_inherited: bool) -> None:
    """Descriptions on one line, no titles that say the key again, no defaults that are whole sections."""
    if is_inherited:  # by what extends it, whose `model.name` may come from there
        section.pop("required", None)
    section["description"] = one_line(section["description"].partition("\n\n")[0])
    for key in section["properties"].values():
        key.pop("title", None)
        if "description" in key:  # pydantic leaves out what the section that it refers to says of itself
            key["description"] = one_line(key["description"])
        if isinstance(key.get("default"), dict) and "$ref" in key:
            del key["default"]

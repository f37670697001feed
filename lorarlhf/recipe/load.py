"""Recipes: follow `extends`, override, validate once, write back.

Later wins: defaults < `extends` < the recipe < named options < `--set a.b=v`. Mappings merge, lists are replaced.
Relative paths in `data.*` and `model.name` are taken from the current directory, as on the command line; what begins
with `shipped:` lies in the `data` folder that ships with lorarlhf (`lorarlhf.recipe.shipped`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lorarlhf.errors import UserError
from lorarlhf.recipe.faults import explain, line
from lorarlhf.recipe.sections import DataConfig, Recipe, Source
from lorarlhf.recipe.shipped import find_recipe
from lorarlhf.recipe.trust import check_code
from lorarlhf.recipe.yaml import Document, KeyPath, dump_yaml, parse_yaml, read_yaml, show


class Option(NamedTuple):
    """A value given by a command-line option; `flag` is what messages call it. None is a value: it sets null."""

    flag: str
    value: object


def load_recipe(
    name_or_path: str,
    named: Mapping[str, Option] | None = None,
    sets: Sequence[str] = (),
    trust: bool = False,
    of_run: bool = False,
    runs_functions: bool = True,
) -> Recipe:
    """A recipe with everything that overrides it, validated.

    Args:
        named: dotted key to the option that gives its value, as `{"model.name": Option("--model", "gpt2")}`.
        sets: the texts of `--set`, as `ppo.kl_coef=0.1`; values are YAML.
        trust: let it run code that a file from elsewhere names (`lorarlhf.recipe.trust`).
        of_run: a run brought the recipe along; else somebody named it.
        runs_functions: False where its reward functions are not run: for them no trust is asked.

    Raises:
        UserError: every fault found, one a line, each with its file and line or its option; or code that needs `trust`.
    """
    draft, file = _drafted(name_or_path, named, sets)
    recipe = draft.validated(file)
    if not trust:
        check_code(recipe, draft.written_in(), of_run, runs_functions)
    return recipe


class Traced(NamedTuple):
    """A recipe, and who wrote each of its keys: `FILE:LINE`, `--option` or `--set a.b=v`; a default nobody."""

    recipe: Recipe
    origins: dict[KeyPath, str]

    def value(self, path: KeyPath) -> Any:
        """What a key is, as plain data; null where its section is not there."""
        value: Any = self.recipe.model_dump(mode="json")
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def origin(self, path: KeyPath) -> str | None:
        """Who wrote a key, or the section it is in as a whole; None of a default."""
        return self.origins.get(path)


def trace_recipe(name_or_path: str, named: Mapping[str, Option] | None = None, sets: Sequence[str] = ()) -> Traced:
    """What `load_recipe` loads, with where it comes from: to be looked at, so that no trust is asked for."""
    draft, file = _drafted(name_or_path, named, sets)
    return Traced(draft.validated(file), draft.origins)


def _drafted(name_or_path: str, named: Mapping[str, Option] | None, sets: Sequence[str]) -> tuple[_Draft, str]:
    """All that is written of a recipe, and the file to name where nobody wrote a key."""
    draft = _Draft()
    chain = _follow_extends(find_recipe(name_or_path))
    for path, document in chain:
        draft.add_file(path, document)
    for key, option in (named or {}).items():
        draft.add_value(tuple(key.split(".")), Document(option.value), option.flag)
    for text in sets:
        draft.add_set(text)
    return draft, str(chain[-1][0])


def parse_source(text: str) -> Source:
    """A source as on the command line: what `data.*` may name, a mapping in braces or a name by itself.

    Raises:
        UserError: the mapping is none, or one of its keys is at fault.
    """
    if not text:
        raise UserError("a source of no name; give a Hub id, a file or a folder")
    if not text.startswith("{"):
        return Source(source=text)
    document = parse_yaml(text)
    if document.faults:
        raise UserError(f"{text}: {document.faults[0].message}")
    try:
        return Source.model_validate(document.data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        known = ", ".join(Source.model_fields)
        raise UserError(f"{text}: {'.'.join(map(str, first['loc']))}: {first['msg']}; there are {known}") from error


def source_value(text: str) -> str | dict[str, Any]:
    """A source as on the command line as the value of a recipe's key. Raises UserError as `parse_source` does."""
    return parse_source(text).model_dump() if text.startswith("{") else text


def weighed(texts: Sequence[str]) -> list[Source]:
    """Several sources as on the command line, each with `:WEIGHT` behind it or none."""
    sources = []
    for text in texts:
        name, _, weight = text.rpartition(":")
        try:
            number = float(weight) if name and not text.endswith("}") else None
        except ValueError:  # a colon of the name's own, as in shipped:demo/preferences.jsonl
            number = None
        sources.append(
            parse_source(
                text if number is None else f"{{source: {json.dumps(name, ensure_ascii=False)}, weight: {number}}}"
            )
        )
    try:
        DataConfig(preferences=[*sources])
    except ValidationError as error:
        raise UserError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error
    return sources


def dump_recipe(recipe: Recipe) -> str:
    """Every key of the recipe as YAML; loading it gives an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


@dataclass
class _Draft:
    """What has been put together so far, and who wrote each key."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    faults: list[tuple[KeyPath, str]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def add_file(self, path: Path, document: Document) -> None:
        self.files |= {f"{path}:{number}": path for number in document.lines.values()}
        self._add(document.data, {key: f"{path}:{number}" for key, number in document.lines.items()})
        for fault in document.faults:
            self.faults.append((fault.path, line(f"{path}:{fault.line}", fault.path, fault.message)))

    def add_value(self, at: KeyPath, document: Document, origin: str) -> None:
        data = document.data
        for key in reversed(at):
            data = {key: data}
        self._add(data, {(*at, *key): origin for key in [(), *document.lines]})
        for fault in document.faults:
            path = (*at, *fault.path)
            self.faults.append((path, line(origin, path, fault.message)))

    def add_set(self, text: str) -> None:
        dotted_key, equals, value = text.partition("=")
        at = tuple(part.strip() for part in dotted_key.split("."))
        origin = f"--set {text}"
        if not equals or not all(at):
            self.faults.append(((), f"{origin}: not of the form key=value; write for example --set ppo.kl_coef=0.1"))
        elif at == ("extends",):
            self.faults.append((at, f"{origin}: only a file can extend; choose the recipe with --recipe"))
        else:
            self.add_value(at, parse_yaml(value), origin)

    def written_in(self) -> dict[KeyPath, tuple[Path, str]]:
        """Of each key whose value is a file's: that file, and the file with the line."""
        return {key: (self.files[origin], origin) for key, origin in self.origins.items() if origin in self.files}

    def validated(self, file: str) -> Recipe:
        faults = list(self.faults)
        try:
            recipe = Recipe.model_validate(self.data)
        except ValidationError as error:
            known = {path for path, _ in faults}
            lines = explain(error, self.data, self.origins, file)
            faults += [(path, text) for path, text in lines.items() if path not in known]
        if faults:
            raise UserError("\n".join(text for _, text in sorted(faults, key=self._written)))
        return recipe

    def _written(self, fault: tuple[KeyPath, str]) -> int:
        """Sorts faults in the order that their keys were written."""
        path = fault[0]
        order = list(self.origins)
        return next((order.index(path[:end]) for end in range(len(path), 0, -1) if path[:end] in order), -1)

    def _add(self, data: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        replaced = set(_merge(self.data, data))
        kept = {
            key: origin
            for key, origin in self.origins.items()
            if key not in origins and not any(key[:end] in replaced for end in range(1, len(key) + 1))
        }
        self.origins = kept | origins


def _merge(base: dict[str, Any], over: Mapping[str, Any], at: KeyPath = ()) -> Iterator[KeyPath]:
    """Lay one mapping over another in place; yields the keys whose whole value is a new one."""
    for key, value in over.items():
        # One data set takes the place of another whole: a configuration of that is none of this.
        if isinstance(value, dict) and isinstance(base.get(key), dict) and "source" not in value:
            yield from _merge(base[key], value, (*at, key))
        else:
            base[key] = value
            yield (*at, key)


def _follow_extends(path: Path) -> list[tuple[Path, Document]]:
    """The recipe and what it extends, the most basic one first."""
    chain: list[tuple[Path, Document]] = []
    while True:
        document = read_yaml(path)
        chain.insert(0, (path, document))
        parent = document.data.pop("extends", None)
        if parent is None:
            return chain
        where = f"{path}:{document.lines['extends',]}: extends"
        if not isinstance(parent, str) or not parent:
            raise UserError(f"{where}: expected a recipe's name or path, got {show(parent)}")
        try:
            path = find_recipe(parent, relative_to=path.parent)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if any(path.samefile(seen) for seen, _ in chain):
            circle = " -> ".join(str(seen) for seen in [*(seen for seen, _ in reversed(chain)), path])
            raise UserError(f"{where}: recipes extend each other in a circle: {circle}; remove one `extends`")

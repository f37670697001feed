"""Which base model an adapter was trained on: written beside it, and compared when it is loaded.

An adapter says what to add to weights it has seen. Added to others of the same shape (an instruct model in place of its
base, a later revision) it loads without an error and computes something else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lorarlhf.errors import UserError
from lorarlhf.json_file import read_object
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.recipe.shipped import resolve_path

BASE_FILE = "base.json"  # beside adapter_config.json
BLOCKS, BLOCK_BYTES = 64, 4096  # of each file of weights: reading all of them would take as long as loading them
UNSAID = ("transformers_version", "_name_or_path")  # of a config: what changes when a model is only saved again


@dataclass(frozen=True)
class BaseModel:
    """What tells one base model from another.

    Attributes:
        name, revision: as they were asked for; of the Hub, the commit. Only to be read by people.
        config: hash of its configuration.
        weights: hash of its index and of each file's name, size, header and a few blocks. None, as `config`, where
            there is no such file.
    """

    name: str
    revision: str | None
    config: str | None
    weights: str | None

    def __str__(self) -> str:
        return f"{self.name} at {self.revision[:12]}" if self.revision else self.name

    def save(self, folder: Path) -> None:
        """Write it beside an adapter."""
        (folder / BASE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def identify_base(config: ModelConfig, commit: str | None) -> BaseModel:
    """The model that a recipe names, from files that are on this computer, as they are once it has been loaded.

    Args:
        commit: what a Hub id and its revision stood for; None for a folder.
    """
    revision = commit or config.revision
    path = resolve_path(config.name)
    config_file = _local_file(path, "config.json", revision)
    return BaseModel(
        name=config.name,
        revision=revision,
        config=_hash_config(config_file) if config_file else None,
        weights=_hash_weights(path, revision),
    )


def base_of(folder: Path) -> BaseModel | None:
    """What the adapter in a folder was trained on; None if that does not say: it is older, or from elsewhere."""
    file = folder / BASE_FILE
    if not file.is_file():
        return None
    said = read_object(file)
    try:
        base = BaseModel(**said)
    except TypeError as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it if the base model is surely the same") from error
    if not all(value is None or isinstance(value, str) for value in said.values()):
        raise UserError(f"{file}: holds more than text; remove it if the base model is surely the same")
    return base


def check_base(folder: Path, base: BaseModel) -> None:
    """Raise UserError if the adapter in a folder was trained on another base model, as far as it says."""
    trained_on = base_of(folder)
    if trained_on is None:
        return
    for before, now, difference in (
        (trained_on.config, base.config, "another config"),
        (trained_on.weights, base.weights, "other weights"),
    ):
        if None not in (before, now) and before != now:
            raise UserError(
                f"{folder}: the adapter was trained on {trained_on}, which has {difference} than {base} here; give the "
                "model it was trained on, or --allow-other-base to load it all the same"
            )


def _local_file(path: str, name: str, revision: str | None) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    cached = try_to_load_from_cache(path, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _hash_config(file: Path) -> str:
    values = read_object(file)
    said = {key: value for key, value in values.items() if key not in UNSAID}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _hash_weights(path: str, revision: str | None) -> str | None:
    index = _local_file(path, "model.safetensors.index.json", revision)
    names = {"model.safetensors"}
    if index is not None:
        names = set(read_object(index)["weight_map"].values())
    files = [_local_file(path, name, revision) for name in sorted(names)]
    digest = hashlib.sha256()
    for file in files:
        if file is None:
            return None
        _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    """Name, size and header of a safetensors file, and blocks at even distances: fine-tuning moves nearly all of it."""
    size = path.stat().st_size
    digest.update(f"{path.name} {size}\n".encode())
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        digest.update(file.read(start - 8))
        for block in range(BLOCKS):
            file.seek(start + block * (size - start) // BLOCKS)
            digest.update(file.read(BLOCK_BYTES))

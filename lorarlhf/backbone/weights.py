"""The files of weights that a model on the Hub is loaded from, and which of them are still to be fetched."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from lorarlhf.downloads import announce
from lorarlhf.json_file import read_object
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.recipe.shipped import resolve_path

TIMEOUT = 10  # seconds, as for any question to the Hub


def announce_weights(config: ModelConfig, model_config: PreTrainedConfig) -> None:
    """Say how much of a model is fetched before it is; nothing of a folder, or of one that was fetched before.

    Raises:
        UserError: the disk has no room for it.
    """
    name = resolve_path(config.name)
    if not Path(name).is_dir():
        named = getattr(model_config, "transformers_weights", None)
        announce(config.name, "weights", _to_come(name, config.revision, named), Path(constants.HF_HUB_CACHE))


def _to_come(name: str, revision: str | None, named: str | None) -> dict[str, int]:
    """Bytes of each file of weights that is not kept here; none if the Hub cannot be asked, which loading will tell."""
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = _loaded_from(name, info.sha, named, sizes)
    except (HfHubHTTPError, HTTPError, ConnectionError):
        return {}
    return {
        file: sizes.get(file, 0)
        for file in wanted
        if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)
    }


def _loaded_from(name: str, commit: str | None, named: str | None, there: Collection[str]) -> set[str]:
    """What `from_pretrained` takes: the file that the config names, else the single one, else those of the index."""
    first = next((file for file in (named, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if file in there), None)
    if first is None or not first.endswith(".index.json"):
        return {first} if first else set()
    index = read_object(Path(hf_hub_download(name, first, revision=commit)))
    return set(index["weight_map"].values())

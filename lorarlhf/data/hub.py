"""Data sets of the Hub, and folders laid out like them: fetched once, kept by `datasets`, there again without network.

`datasets` makes Arrow files of them, which are mapped: memory does not grow with the rows.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorarlhf.errors import UserError, first_line
from lorarlhf.recipe.sections import Source
from lorarlhf.recipe.shipped import resolve_path

if TYPE_CHECKING:
    from datasets import DatasetBuilder, DatasetDict

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MIB = 2**20
logger = logging.getLogger(__name__)


def hub_data(source: Source) -> DatasetDict:
    """All splits of a data set, by name. Raises UserError if it cannot be read.

    It is asked for and fetched once a process, and not again where `datasets` has it from before.
    """
    return _hub_data(source.source, source.name, source.data_dir, source.revision)


@lru_cache
def _hub_data(source: str, name: str | None, data_dir: str | None, revision: str | None) -> DatasetDict:
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    path = resolve_path(source)
    local = Path(path).expanduser().is_dir()
    if not local and not HUB_ID.fullmatch(source):
        raise UserError(
            f"{source}: neither a file nor the form of a Hub id (name or owner/name); check data.* in the recipe"
        )
    if local and revision:
        raise UserError(f"{source}: is a folder, and has no revision {revision!r}; take it out, or name a Hub id")
    try:
        builder = _builder(source, str(Path(path).expanduser()) if local else path, name, data_dir, revision)
        if not local:
            _say_what_is_to_come(builder, source)
        with _bars():
            builder.download_and_prepare()
        return builder.as_dataset()
    except (DatasetNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            f"{source}: no such file, and no such data set on the Hub that you may read ({first_line(error)}); "
            "check the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except ConnectionError as error:
        raise UserError(
            f"{source}: no such file, and the Hub cannot be reached ({first_line(error)}); "
            "go online, or give a local file"
        ) from error
    # RuntimeError: a data set that is a script. StopIteration: all files are empty.
    except (ValueError, OSError, RuntimeError, StopIteration, DatasetsError) as error:
        why = first_line(error.__cause__ or error)
        raise UserError(
            f"{source}: `datasets` cannot read this {'folder' if local else 'Hub data set'} ({why})"
        ) from error


def _builder(source: str, path: str, name: str | None, data_dir: str | None, revision: str | None) -> DatasetBuilder:
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = datasets.load_dataset_builder(path, name=name, data_dir=data_dir, revision=revision)
    except ValueError as error:
        names = datasets.get_dataset_config_names(path, revision=revision)
        if name in names or len(names) < 2:
            raise
        raise UserError(
            f"{source}: has the configurations {', '.join(names)}{f', and no {name}' if name else ''}; "
            f"name one in the recipe: {{source: {source}, name: {names[0]}}}"
        ) from error
    if isinstance(builder, Cache):  # what `datasets` falls back on without a word that the user would see
        _check_kept(source, revision, kept=Path(builder.cache_dir).name)
    return builder


def _check_kept(source: str, revision: str | None, kept: str) -> None:
    """Say that the Hub does not answer, and which commit is taken instead; `datasets` would take any.

    Raises:
        UserError: the recipe names another one.
    """
    from huggingface_hub import try_to_load_from_cache

    if revision is not None:
        card = try_to_load_from_cache(source, "README.md", repo_type="dataset", revision=revision)
        commit = revision if COMMIT.fullmatch(revision) else Path(card).parent.name if isinstance(card, str) else None
        if commit != kept:
            raise UserError(
                f"{source}: the Hub cannot be reached, and what is kept here is commit {kept}, not known to be "
                f"revision {revision}; go online once, or name that commit as revision"
            )
    logger.warning("%s: the Hub cannot be reached; commit %s, which was fetched before, is taken", source, kept)


def _say_what_is_to_come(builder: DatasetBuilder, source: str) -> None:
    """How much is fetched, before it is; nothing where `datasets` has it already."""
    from huggingface_hub import HfApi

    if Path(builder.cache_dir).is_dir():
        return
    files = {url for urls in (builder.config.data_files or {}).values() for url in urls if url.startswith("hf://")}
    paths = [url.partition("@")[2].partition("/")[2] for url in sorted(files)]  # hf://datasets/OWNER/NAME@COMMIT/PATH
    found = HfApi().get_paths_info(source, paths, repo_type="dataset", revision=builder.hash) if paths else []
    size = sum(file.size for file in found if hasattr(file, "size"))
    logger.info("%s: fetching %s MiB in %d files, once", source, f"{size / MIB:,.1f}", len(found))


@contextmanager
def _bars() -> Iterator[None]:
    """Show how fetching goes, for people at a terminal who want to hear of what goes on."""
    import datasets

    if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        yield
        return
    datasets.enable_progress_bars()
    try:
        yield
    finally:
        datasets.disable_progress_bars()

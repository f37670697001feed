"""Data sets of the Hub, and folders laid out like them: fetched once, kept, and there again without network.

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

from lorarlhf.downloads import announce
from lorarlhf.errors import UserError, first_line
from lorarlhf.recipe.sections import Source
from lorarlhf.recipe.shipped import resolve_path

if TYPE_CHECKING:
    from datasets import DatasetBuilder, DatasetDict

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
logger = logging.getLogger(__name__)


def hub_data(source: Source) -> DatasetDict:
    """All splits of a data set, by name. Raises UserError if it cannot be read.

    It is asked for once a process, and fetched only where it is not kept from before.
    """
    return _hub_data(source.source, source.name, source.data_dir, source.revision)


@lru_cache
def _hub_data(source: str, name: str | None, data_dir: str | None, revision: str | None) -> DatasetDict:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    folder = Path(resolve_path(source))
    local = folder.is_dir()
    if not local and not HUB_ID.fullmatch(source):
        raise UserError(
            f"{source}: neither a file nor the form of a Hub id (name or owner/name); check data.* in the recipe"
        )
    if local and revision:
        raise UserError(f"{source}: is a folder, and has no revision {revision!r}; take it out, or name a Hub id")
    try:
        if not local and not has_revision(source, revision):
            local, folder, revision = True, kept_folder(source, revision), None
        builder = _builder(source, str(folder) if local else source, name, data_dir, revision)
        if not local:
            _say_what_is_to_come(builder, source)
        with _bars():
            builder.download_and_prepare()
        return builder.as_dataset()
    except HfHubHTTPError as error:
        raise UserError(
            f"{source}: no such file, and no such data set on the Hub that you may read ({first_line(error)}); "
            "check the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except HTTPError as error:
        raise UserError(f"{source}: the Hub broke off ({first_line(error)}); try again") from error
    # RuntimeError: a data set that is a script. StopIteration: all files are empty.
    except (ValueError, OSError, RuntimeError, StopIteration, DatasetsError) as error:
        what, why = "folder" if local else "Hub data set", first_line(error.__cause__ or error)
        raise UserError(f"{source}: `datasets` cannot read this {what} ({why})") from error


def has_revision(source: str, revision: str | None) -> bool:
    """Whether the Hub has this data set; False if it cannot be reached. Raises HfHubHTTPError where it has it not."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # that of its HTTP library, of which there are two

    try:
        HfApi().dataset_info(source, revision=revision)
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        return False
    except (ConnectionError, HTTPError):
        return False
    return True


def kept_folder(source: str, revision: str | None) -> Path:
    """What was fetched of a data set before, which stands in for the Hub; of several commits the last that was.

    `datasets` falls back on what it keeps, too, but on any revision, and it does not find what has a `data_dir`.

    Raises:
        UserError: nothing was, or another revision.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        repos = frozenset()
    kept = [
        commit for repo in repos if repo.repo_type == "dataset" and repo.repo_id == source for commit in repo.revisions
    ]
    if not kept:
        raise UserError(
            f"{source}: no such file, and the Hub cannot be reached, from which it was not fetched before; go online, "
            "or give a local file"
        )
    wanted = [commit for commit in kept if revision is None or revision in {commit.commit_hash, *commit.refs}]
    if not wanted:
        raise UserError(
            f"{source}: the Hub cannot be reached, and {revision} is not known to be among the commits that were "
            f"fetched before: {', '.join(sorted(commit.commit_hash for commit in kept))}; go online, or name one"
        )
    last = max(wanted, key=lambda commit: commit.last_modified)
    logger.warning("%s: the Hub cannot be reached: commit %s, fetched before, is taken", source, last.commit_hash)
    return last.snapshot_path


def _builder(source: str, path: str, name: str | None, data_dir: str | None, revision: str | None) -> DatasetBuilder:
    import datasets

    try:
        return datasets.load_dataset_builder(path, name=name, data_dir=data_dir, revision=revision)
    except ValueError as error:
        names = datasets.get_dataset_config_names(path, revision=revision)
        if name in names or len(names) < 2:
            raise
        raise UserError(
            f"{source}: has the configurations {', '.join(names)}{f', and no {name}' if name else ''}; "
            f"name one in the recipe: {{source: {source}, name: {names[0]}}}"
        ) from error


def _say_what_is_to_come(builder: DatasetBuilder, source: str) -> None:
    """How much is fetched, before it is; nothing where `datasets` has it already. Raises UserError without room."""
    from huggingface_hub import HfApi, constants

    if Path(builder.cache_dir).is_dir():
        return
    files = {url for urls in (builder.config.data_files or {}).values() for url in urls if url.startswith("hf://")}
    paths = [url.partition("@")[2].partition("/")[2] for url in sorted(files)]  # hf://datasets/OWNER/NAME@COMMIT/PATH
    found = HfApi().get_paths_info(source, paths, repo_type="dataset", revision=builder.hash) if paths else []
    sizes = {file.path: file.size for file in found if hasattr(file, "size")}  # folders have none
    announce(source, "data", sizes, Path(constants.HF_HUB_CACHE))


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

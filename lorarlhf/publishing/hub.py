"""Upload an export to the Hugging Face Hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from rich.filesize import decimal

from lorarlhf.errors import UserError, first_line
from lorarlhf.publishing.folder import exported_files

DENIED = (401, 403)


def check_can_push(repo_id: str) -> None:
    """See to what an upload wants as far as this machine knows it: merging before it may take minutes.

    Raises:
        UserError: a name that no repository can have, no login, or the Hub is not to be asked.
    """
    try:
        validate_repo_id(repo_id)
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        if get_token() is None:
            raise LocalTokenNotFoundError("there is no login")
    except (HFValidationError, OfflineModeIsEnabled, LocalTokenNotFoundError) as error:
        raise UserError(f"--push-to-hub {repo_id}: {_reason(error)}") from error


def upload_lines(folder: Path, repo_id: str, private: bool) -> list[str]:
    """What an upload would send where, for people to read before it does: files, sizes, who may see them.

    Raises:
        UserError: as `push_to_hub` does of what lies in the folder.
    """
    sizes = {name: (folder / name).stat().st_size for name in exported_files(folder)}
    seen = "private" if private else "public, unless it exists and is private"
    lines = [f"to upload: {len(sizes)} files, {decimal(sum(sizes.values()))}, to {repo_id} ({seen})"]
    return lines + [f"  {decimal(size):>9}  {name}" for name, size in sorted(sizes.items())]


def push_to_hub(folder: Path, repo_id: str, private: bool) -> str:
    """Upload the files of an export into a model repository, made if it is not there; return its address.

    What is there already is not sent again, so the same call goes on after an interruption.

    The token is the one that `hf auth login` keeps or `HF_TOKEN` gives; nothing here reads or writes it.

    Raises:
        UserError: something lies in the folder that was not exported, a link included; no or wrong login, no network, a
            name that the Hub refuses, or a repository that is public although `private` is asked for. `folder` stays as
            it is.
    """
    names = exported_files(folder)
    api = HfApi()
    try:
        url = api.create_repo(repo_id, repo_type="model", private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise UserError(
                f"--private: {url.repo_id} exists and is public, so nothing was uploaded; make it private in its "
                f"settings, or give another name; the export is in {folder}"
            )
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type="model",
            folder_path=folder,
            allow_patterns=names,
            commit_message="Export from lorarlhf",
        )
    except (HTTPError, LocalTokenNotFoundError, HFValidationError, OfflineModeIsEnabled) as error:
        again = f"hf upload {repo_id} {shlex.quote(str(folder))}"
        raise UserError(
            f"--push-to-hub {repo_id}: {_reason(error)}; the export is in {folder}, and `{again}` sends what is not "
            "there yet"
        ) from error
    return str(url)


def _reason(error: Exception) -> str:
    """What is wrong, and what to do."""
    return f"{first_line(error).removesuffix('.')}; {_remedy(error)}"


def _remedy(error: Exception) -> str:
    if isinstance(error, HFValidationError):
        return "write it as NAME or OWNER/NAME"
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return "run `hf auth login`"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in DENIED:
        return "run `hf auth login` with a token that may write there"
    if isinstance(error, HfHubHTTPError):
        return "the Hub refused it"
    return "check the network"

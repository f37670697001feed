"""Uploads, with the Hub's client replaced: what it is asked for, and what its errors become."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from lorarlhf.errors import UserError
from lorarlhf.publishing import hub
from lorarlhf.publishing.folder import MARKER, write_marker


class Url(str):
    repo_id = "me/model"


class FakeApi:
    """Records its calls; raises `error` from the call named `failing`."""

    def __init__(self, error=None, failing="create_repo", public=False):
        self.error, self.failing, self.public = error, failing, public
        self.calls = {}

    def _called(self, name, **arguments):
        self.calls[name] = arguments
        if self.error is not None and name == self.failing:
            raise self.error

    def create_repo(self, repo_id, **arguments):
        self._called("create_repo", repo_id=repo_id, **arguments)
        return Url("https://huggingface.co/me/model")

    def model_info(self, repo_id):
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **arguments):
        self._called("upload_folder", **arguments)


@pytest.fixture
def api(monkeypatch):
    def install(**options):
        fake = FakeApi(**options)
        monkeypatch.setattr(hub, "HfApi", lambda: fake)
        return fake

    return install


@pytest.fixture
def exported(tmp_path):
    (tmp_path / "README.md").write_text("# A model")
    write_marker(tmp_path, {})
    return tmp_path


def refused(status):
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"{status} Client Error", response=response)


@pytest.mark.parametrize(("private", "sent"), [(True, True), (False, None)])
def test_the_folder_goes_into_a_repository_made_for_it(api, exported, private, sent):
    fake = api(public=not private)
    assert hub.push_to_hub(exported, "model", private) == "https://huggingface.co/me/model"
    assert fake.calls["create_repo"] == {
        "repo_id": "model",
        "repo_type": "model",
        "private": sent,
        "exist_ok": True,
    }
    upload = fake.calls["upload_folder"]
    assert (upload["repo_id"], upload["folder_path"]) == ("me/model", exported)
    assert upload["allow_patterns"] == ["README.md", "lorarlhf_export.json"]
    assert not any("token" in call for call in fake.calls.values())


def test_nothing_private_goes_into_a_public_repository(api, exported):
    fake = api(public=True)
    with pytest.raises(UserError, match="me/model exists and is public, so nothing was uploaded"):
        hub.push_to_hub(exported, "me/model", private=True)
    assert "upload_folder" not in fake.calls


@pytest.mark.parametrize("failing", ["create_repo", "upload_folder"])
@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (refused(401), "run `hf auth login`"),
        (refused(403), "run `hf auth login`"),
        (refused(500), "the Hub refused"),
        (LocalTokenNotFoundError("Token is required\nbut not found"), "run `hf auth login`"),
        (OfflineModeIsEnabled("Cannot reach the Hub: offline mode"), "unset HF_HUB_OFFLINE"),
        (HFValidationError("Repo id must be in the form ..."), "OWNER/NAME"),
        (HTTPError("Connection refused"), "check the network"),
        (HTTPError(""), "check the network"),
    ],
)
def test_errors_are_one_line_with_a_remedy(api, exported, error, remedy, failing):
    api(error=error, failing=failing)
    with pytest.raises(UserError) as caught:
        hub.push_to_hub(exported, "me/model", private=False)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("--push-to-hub me/model: ")
    assert remedy in message
    assert str(exported) in message


def test_offline_it_fails_at_once_without_a_connection(exported, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        hub.push_to_hub(exported, "me/model", private=False)


@pytest.fixture
def online(monkeypatch):
    """With a login, and the Hub may be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")


def test_what_can_be_pushed_is_known_before_anything_is_made(online, monkeypatch):
    hub.check_can_push("me/model")
    with pytest.raises(UserError, match=r"^--push-to-hub a/b/c: [^;]*[^.]; write it as NAME or OWNER/NAME$"):
        hub.check_can_push("a/b/c")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no login; run `hf auth login`"):
        hub.check_can_push("me/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        hub.check_can_push("me/model")


def test_what_will_be_sent_is_listed(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"0" * 2_500_000)
    (tmp_path / "sub" / "README.md").write_text("hi")
    write_marker(tmp_path, {})
    size = (tmp_path / MARKER).stat().st_size
    heading, *files = hub.upload_lines(tmp_path, "me/model", private=True)
    assert heading == "to upload: 3 files, 2.5 MB, to me/model (private)"
    assert [line.split() for line in files] == [
        [str(size), "bytes", MARKER],
        ["2.5", "MB", "model.safetensors"],
        ["2", "bytes", "sub/README.md"],
    ]
    assert "public" in hub.upload_lines(tmp_path, "me/model", private=False)[0]


def test_a_push_that_broke_off_says_how_to_send_the_rest(api, tmp_path):
    folder = tmp_path / "my model"
    folder.mkdir()
    write_marker(folder, {})
    api(error=HTTPError("Connection reset"), failing="upload_folder")
    with pytest.raises(UserError, match=f"`hf upload me/model '{folder}'` sends what is not there yet"):
        hub.push_to_hub(folder, "me/model", private=False)


@pytest.mark.parametrize("what", ["a link", "a foreign file", "an edited file", "a folder that is a link"])
def test_only_what_was_exported_is_uploaded(api, exported, tmp_path_factory, what):
    fake, theirs = api(), tmp_path_factory.mktemp("theirs")
    (theirs / "key").write_text("secret")
    if what == "a link":
        (exported / "model.bin").symlink_to(theirs / "key")
    elif what == "a folder that is a link":
        (exported / "more").symlink_to(theirs)
    else:
        (exported / ("README.md" if what == "an edited file" else "notes.txt")).write_text("secret")
    with pytest.raises(UserError, match="is not as an earlier export wrote it"):
        hub.upload_lines(exported, "me/model", private=False)
    with pytest.raises(UserError, match="is not as an earlier export wrote it"):
        hub.push_to_hub(exported, "me/model", private=False)
    assert fake.calls == {}

"""Models and backbones that any test may ask for. Imports are inside, so that tests without a model start at once."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lorarlhf.backbone.shared import SharedBackbone


def pytest_configure(config) -> None:
    """Warnings of the tests' own code are errors. A filter names a module, and a module of the tests has no package."""
    modules = sorted(path.stem for path in Path(__file__).parent.rglob("*.py"))
    config.addinivalue_line("filterwarnings", rf"error:::({'|'.join(modules)})\Z")  # one: each is set up for each test


def pytest_collection_finish() -> None:
    """What imports have made is never collected: gone through each time, it took half of many a test's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory) -> Iterator[Path]:
    """The user's own state folder, where it is noted which code was trusted: not that of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def signals_of_a_terminal() -> None:
    """A suite that is run in the background is started with SIGINT ignored, and ignored signals stay so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Callable[[str], Path]:
    """`tiny_model(family)`: folder of a tiny random model of a family in `tiny_models`, made once."""
    from tiny_models import make_model

    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder


@pytest.fixture
def load_tiny(tiny_model) -> Callable[..., SharedBackbone]:
    """`load_tiny(family, **ModelConfig)`: a new backbone, NF4 in float32 unless told otherwise, and torch seeded."""
    import torch

    from lorarlhf.backbone.load import load_backbone
    from lorarlhf.recipe.sections import ModelConfig

    def load(family: str, **options) -> SharedBackbone:
        name = str(tiny_model(family))
        torch.manual_seed(0)  # for the heads, after the model was made
        return load_backbone(ModelConfig(name=name, **{"compute_dtype": "float32", **options}))

    return load


@pytest.fixture
def cuda_autocast() -> Iterator[None]:
    """CPU autocast with CUDA's float32 list."""
    from cuda_autocast import cuda_autocast_rules

    with cuda_autocast_rules():
        yield


@pytest.fixture
def demo_backbone() -> SharedBackbone:
    """The demo's base model, NF4 in float32."""
    import torch

    from lorarlhf.backbone.load import load_backbone
    from lorarlhf.recipe.sections import ModelConfig

    torch.manual_seed(0)
    return load_backbone(ModelConfig(name="shipped:demo/model", compute_dtype="float32"))


@pytest.fixture
def fake_hub(monkeypatch):
    """`fake_hub(splits, **asked)`: a Hub with the data set `owner/pairs`, which must be asked for as told."""
    import datasets
    from huggingface_hub.errors import RepositoryNotFoundError

    from lorarlhf.data import hub

    class Builder:
        cache_dir, hash = ".", "0" * 40

        def __init__(self, splits):
            self.splits = splits

        def download_and_prepare(self):
            fetched.append("owner/pairs")

        def as_dataset(self):
            return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in self.splits.items()})

    fetched = []

    def set_up(splits, **asked):
        def load(path, **wanted):
            assert path == "owner/pairs"
            assert wanted == {"name": None, "data_dir": None, "revision": None} | asked
            return Builder(splits)

        def has_revision(source, revision):
            if source != "owner/pairs":
                raise RepositoryNotFoundError("404 Client Error", response=SimpleNamespace(headers={}, request=None))
            return True

        monkeypatch.setattr(datasets, "load_dataset_builder", load)
        monkeypatch.setattr(hub, "has_revision", has_revision)
        return fetched

    hub._hub_data.cache_clear()
    yield set_up
    hub._hub_data.cache_clear()


@pytest.fixture
def run_collect():
    """`run_collect(*arguments, command)`: a `Running` server, of the labelling page unless told otherwise; killed after
    the test."""
    from labelling_page import Running

    started = []

    def run(*args, **options):
        started.append(Running(*args, **options))
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.communicate()


@pytest.fixture(scope="module")
def browser():
    """Chromium, headless; tests that need it skip where there is none."""
    import shutil

    sync_api = pytest.importorskip("playwright.sync_api", reason="pages need playwright: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("pages need a browser: apt-get install chromium")
    flags = [
        *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
    ]
    with sync_api.sync_playwright() as playwright:  # makes an empty user data folder of its own
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """`open_page(link, context)`: a tab that must end without a script error or a breach of the page's policy."""
    problems = []
    contexts = []

    def opened(link, context=None, **options):
        if context is None:
            context = browser.new_context(**options)
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: "Policy" in message.text and problems.append(message.text))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(link)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []

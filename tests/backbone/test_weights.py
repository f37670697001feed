"""What is said of a download before it begins: a stand-in for the Hub's API, and a cache of our own."""

import json
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import PreTrainedConfig

from lorarlhf.backbone import load, weights
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.weights import announce_weights
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import ModelConfig

COMMIT = "c" * 40
MIB, GIB = 2**20, 2**30
MODEL = ModelConfig(name="owner/model", revision="v1")
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# Of other kinds, or of other libraries: transformers leaves them where they are.
OTHERS = {"pytorch_model.bin": 9 * GIB, "consolidated.safetensors": 9 * GIB, "onnx/model.onnx": 9 * GIB}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(sizes)`: a Hub on which the model has these files; `hub.keep(file)`: one of them was fetched before."""
    cache = tmp_path / "cache"
    snapshot = cache / "models--owner--model" / "snapshots" / COMMIT
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def keep(file, content=""):
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text(content)
        return str(snapshot / file)

    def set_up(sizes):
        def model_info(self, name, *, revision, files_metadata, timeout):
            assert (name, revision, files_metadata) == ("owner/model", "v1", True)
            return SimpleNamespace(
                sha=COMMIT, siblings=[SimpleNamespace(rfilename=f, size=n) for f, n in sizes.items()]
            )

        def download(name, file, revision):
            assert (name, revision) == ("owner/model", COMMIT)
            return keep(file, json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}))

        monkeypatch.setattr(HfApi, "model_info", model_info)
        monkeypatch.setattr(weights, "hf_hub_download", download)

    set_up.keep = keep
    return set_up


@pytest.fixture
def said(caplog):
    def said(config=MODEL, **keys):
        caplog.clear()
        with caplog.at_level("INFO", logger="lorarlhf"):
            announce_weights(config, PreTrainedConfig(**keys))
        return caplog.text

    return said


def test_one_file(hub, said):
    hub({"config.json": 700, "model.safetensors": 269 * MIB, SHARDS[0]: GIB, **OTHERS})
    assert f"owner/model: fetching 269.0 MiB of weights in 1 file, once, to {constants.HF_HUB_CACHE}" in said()


def test_the_files_of_the_index_but_for_those_that_are_kept(hub, said):
    hub({"model.safetensors.index.json": 1000, SHARDS[0]: 5 * GIB, SHARDS[1]: 3 * GIB, **OTHERS})
    assert "fetching 8.0 GiB of weights in 2 files" in said()
    hub.keep(SHARDS[0])
    assert "fetching 3.0 GiB of weights in 1 file" in said()
    hub.keep(SHARDS[1])
    assert said() == ""


def test_the_file_that_the_config_names(hub, said):
    hub({"model.safetensors": 8 * GIB, "model.fp8.safetensors": 4 * GIB})
    assert "fetching 4.0 GiB of weights in 1 file" in said(transformers_weights="model.fp8.safetensors")


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("HF_HUB_OFFLINE"),
        HfHubHTTPError("503", response=SimpleNamespace(headers={}, request=None, status_code=503)),
    ],
)
def test_a_hub_that_cannot_be_asked_says_nothing(said, monkeypatch, error):
    def model_info(*args, **options):
        raise error

    monkeypatch.setattr(HfApi, "model_info", model_info)
    assert said() == ""


def test_a_folder_and_a_model_without_safetensors_are_not_fetched(hub, said, tmp_path):
    hub(OTHERS)
    assert said() == ""
    (tmp_path / "model").mkdir()
    assert said(ModelConfig(name=str(tmp_path / "model"))) == ""


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub, tiny_model, monkeypatch):
    hub({"model.safetensors": 15 * GIB})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2 * GIB))
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("fetched"))
    here = ModelConfig(name=str(tiny_model("llama")))
    read = {name: getattr(load, name)(here) for name in ("load_model_config", "load_tokenizer")}
    for name, value in read.items():
        monkeypatch.setattr(load, name, lambda config, value=value: value)
    with pytest.raises(
        UserError, match=r"owner/model: 15\.0 GiB of weights are to be fetched, and 2\.0 GiB are free where"
    ):
        load_backbone(MODEL)

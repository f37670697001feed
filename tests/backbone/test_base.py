"""Adapters know the base model they were trained on, and refuse another of the same shape."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarlhf.backbone.base import BASE_FILE, base_of, identify_base
from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import LoraShape, ModelConfig
from lorarlhf.recipe.shipped import shipped_folder

BASE = shipped_folder("data") / "demo" / "model"
SHAPE = LoraShape(r=2, alpha=4, target_modules="all-linear")


@pytest.fixture
def adapter(tmp_path) -> Path:
    """Folder of an adapter on the demo's base model."""
    backbone = load_backbone(ModelConfig(name=str(BASE), quantization="none"))
    backbone.attach("policy", SHAPE)
    backbone.save_role("policy", tmp_path / "adapter")
    return tmp_path / "adapter"


def twin(folder: Path) -> Path:
    return Path(shutil.copytree(BASE, folder))


def tuned(folder: Path) -> Path:
    """The same model after a little fine-tuning."""
    weights = load_file(twin(folder) / "model.safetensors")
    torch.manual_seed(0)
    moved = {name: weight + 1e-3 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def reconfigured(folder: Path) -> Path:
    config = json.loads((twin(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1234.0}))
    return folder


def load(model: Path, adapter: Path, **options) -> None:
    load_backbone(ModelConfig(name=str(model), quantization="none")).load_role("policy", adapter, **options)


@pytest.mark.parametrize(
    ("change", "difference"), [(tuned, "which has other weights than"), (reconfigured, "which has another config than")]
)
def test_another_base_of_the_same_shape_is_refused_in_one_line(adapter, tmp_path, change, difference):
    other = change(tmp_path / "other")
    with pytest.raises(UserError) as caught:
        load(other, adapter)
    message = str(caught.value)
    assert message.startswith(f"{adapter}: the adapter was trained on {BASE}, {difference} {other} here")
    assert "--allow-other-base" in message
    assert "\n" not in message
    load(other, adapter, allow_other_base=True)


def test_the_same_model_elsewhere_or_saved_again_is_the_same(adapter, tmp_path):
    other = twin(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9"}, indent=7))
    load(other, adapter)


def test_an_adapter_that_does_not_say_passes(adapter, tmp_path):
    (adapter / BASE_FILE).unlink()
    assert base_of(adapter) is None
    load(tuned(tmp_path / "other"), adapter)


def test_quantisation_makes_no_other_base(adapter):
    load_backbone(ModelConfig(name=str(BASE), quantization="nf4")).load_role("policy", adapter)


def test_every_shard_of_a_model_counts(tmp_path):
    folder = twin(tmp_path / "sharded")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = identify_base(ModelConfig(name=str(folder)), None)
    save_file({name: weights[name] + 0.01 for name in shards["b.safetensors"]}, folder / "b.safetensors")
    after = identify_base(ModelConfig(name=str(folder)), None)
    assert before.config == after.config
    assert None not in (before.weights, after.weights)
    assert before.weights != after.weights


def test_a_model_that_is_not_here_is_known_by_name_alone(tmp_path):
    base = identify_base(ModelConfig(name=str(tmp_path), revision="main"), "0123456789abcdef")
    assert (base.config, base.weights) == (None, None)
    assert str(base) == f"{tmp_path} at 0123456789ab"


def test_a_file_that_cannot_be_read_is_one_line(adapter):
    (adapter / BASE_FILE).write_text("{")
    with pytest.raises(UserError, match=r"base.json: cannot be read"):
        load(BASE, adapter)

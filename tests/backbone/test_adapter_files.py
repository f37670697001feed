"""Adapters from elsewhere: whatever their files hold, one line and nothing allocated or run."""

import resource

import pytest
import torch
from elsewhere import CONFIGS, DAMAGED_CONFIGS, DAMAGED_WEIGHTS, SPOILT, rewrite_config, spoil_weights
from safetensors.torch import load_file, save_file

from lorarlhf.backbone.adapter_files import CONFIG, SCORE_KEY, WEIGHTS, read_adapter
from lorarlhf.backbone.base import BASE_FILE, base_of
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import LoraShape

SHAPE = LoraShape(r=4, alpha=8, target_modules="all-linear", top_layers=0.5)


@pytest.fixture
def adapter(load_tiny, tmp_path):
    backbone = load_tiny("llama")
    backbone.attach("reward", SHAPE)
    backbone.save_role("reward", tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(adapter):
    with pytest.raises(UserError) as error:
        read_adapter(adapter)
    assert "\n" not in str(error.value)
    assert str(adapter) in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def test_what_is_written_here_is_read(adapter):
    config, state = read_adapter(adapter)
    assert (config.r, config.lora_alpha, config.task_type, config.modules_to_save) == (4, 8, "CAUSAL_LM", None)
    assert SCORE_KEY in state


def test_switches_of_a_later_peft_that_are_off_do_not_matter(adapter):
    rewrite_config(adapter, something_new=None, another={}, auto_mapping={"parent_library": "os"}, lora_dropout=0.3)
    assert read_adapter(adapter)[0].lora_dropout == 0.0


@pytest.mark.parametrize(("key", "value"), CONFIGS)
def test_what_a_config_may_not_say(adapter, key, value):
    rewrite_config(adapter, **{key: value})
    message = refused(adapter)
    assert f"{CONFIG}: '{key}': " in message or "says r is" in message


@pytest.mark.parametrize("content", DAMAGED_CONFIGS.values(), ids=list(DAMAGED_CONFIGS))
def test_a_damaged_config(adapter, content):
    (adapter / CONFIG).write_bytes(content)
    assert str(adapter / CONFIG) in refused(adapter)


@pytest.mark.parametrize("content", DAMAGED_WEIGHTS.values(), ids=list(DAMAGED_WEIGHTS))
def test_damaged_weights(adapter, content):
    (adapter / WEIGHTS).write_bytes(content)
    assert f"{WEIGHTS}: cannot be read" in refused(adapter)


@pytest.mark.parametrize("part", [SCORE_KEY, "lora_A"])
@pytest.mark.parametrize(("kind", "value", "message"), SPOILT)
def test_weights_that_are_not_finite_numbers(adapter, part, kind, value, message):
    key = spoil_weights(adapter, part, kind, value)
    said = refused(adapter)
    assert message in said
    assert key in said


@pytest.mark.parametrize("role", ["reward", "candidate"])
def test_an_adapter_that_computes_nothing_finite(adapter, load_tiny, role):
    """Each of its numbers is finite."""
    backbone = load_tiny("llama")
    backbone.load_role(role, adapter)
    rewrite_config(adapter, lora_alpha=1e300)
    with pytest.raises(UserError, match=f"{adapter}: the adapter computes NaN or infinity"):
        backbone.load_role(role, adapter)


@pytest.mark.parametrize("change", ["a row", "an integer", "a number"])
def test_weights_that_are_not_of_the_rank(adapter, change):
    tensors = load_file(adapter / WEIGHTS)
    key = next(key for key in tensors if "lora_A" in key)
    changed = {"a row": tensors[key][:-1], "an integer": tensors[key].int(), "a number": torch.tensor(1.0)}[change]
    save_file({**tensors, key: changed.contiguous()}, adapter / WEIGHTS)
    assert f"{key} is " in refused(adapter)


def test_a_rank_beyond_the_model_allocates_nothing(adapter, load_tiny):
    """Its one tensor is small; what PEFT would make of the rank is not."""
    rewrite_config(adapter, r=10**6)
    save_file({"base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": torch.zeros(10**6, 1)}, adapter / WEIGHTS)
    backbone = load_tiny("llama")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (lambda: backbone.load_role("reward", adapter), lambda: backbone.attach("policy", SHAPE_OF_GIANTS)):
        with pytest.raises(UserError, match="more than the model's widest layer"):
            load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


SHAPE_OF_GIANTS = LoraShape(r=10**9, alpha=8, target_modules="all-linear")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"name": 1, "revision": 2, "config": 3, "weights": 4}', '{"a": 1}', "[" * 100_000]
)
def test_a_damaged_note_of_the_base(adapter, content):
    (adapter / BASE_FILE).write_text(content)
    with pytest.raises(UserError, match=BASE_FILE):
        base_of(adapter)

"""Loading: quantised as asked, frozen, without dropout; and one plain line for what cannot be loaded."""

import json
import logging
import shutil

import bitsandbytes as bnb
import pytest
import torch
from tiny_models import EOS, FAMILIES, SHAPE, VOCABULARY
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lorarlhf.backbone import load
from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import compute_dtype, load_backbone, load_model_config
from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import DataConfig, ModelConfig


def linear_types(model: nn.Module) -> set[type]:
    layers = dict(model.named_modules())
    return {type(m) for name, m in layers.items() if isinstance(m, nn.Linear) and "lm_head" not in name}


@pytest.mark.parametrize(
    ("quantization", "kind"), [("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt), ("none", nn.Linear)]
)
def test_quantisation_is_the_one_asked_for(load_tiny, quantization, kind):
    backbone = load_tiny("llama", quantization=quantization)
    assert linear_types(backbone.causal_lm) == {kind}
    assert type(backbone.causal_lm.lm_head) is nn.Linear
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_a_model_that_takes_long_to_load_is_not_loaded_in_silence(load_tiny, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="lorarlhf")
    load_tiny("llama")
    assert "loading" not in caplog.text, "a small model is here at once"
    monkeypatch.setattr(load, "SMALL", 0)
    load_tiny("llama", quantization="none")
    assert f"llama: loading, none in float32 on {load.accelerator() or 'cpu'}\n" in caplog.text


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_options(load_tiny, double_quant):
    module = load_tiny("llama", double_quant=double_quant).causal_lm.model.layers[0].mlp.up_proj
    assert module.weight.quant_state.quant_type == "nf4"
    assert module.weight.quant_state.nested is double_quant
    assert module.compute_dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_keeps_its_dropout(tiny_model, family):
    """By what runs, not by what a config says: attention modules hold their rate as a number."""
    model = AutoModelForCausalLM.from_config(load_model_config(ModelConfig(name=str(tiny_model(family)))))
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    for module in model.modules():
        rates += [v for k, v in vars(module).items() if "drop" in k and isinstance(v, float)]
    assert not any(rates)


def test_dropout_is_on_in_some_of_the_models_on_disk(tiny_model):
    """So that the test above can fail."""
    on_disk = {family: json.loads((tiny_model(family) / "config.json").read_text()) for family in FAMILIES}
    with_dropout = {
        family
        for family, config in on_disk.items()
        if any(("dropout" in key or "pdrop" in key) and value for key, value in config.items())
    }
    assert {"llama", "gpt2", "opt", "gpt_neox", "phi3"} <= with_dropout


def test_routers_add_no_noise(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("mixtral"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"router_jitter_noise": 0.2}))
    assert load_model_config(ModelConfig(name=str(folder))).router_jitter_noise == 0


def test_pad_differs_from_eos_and_the_embedding_keeps_its_size(tiny_model, tmp_path):
    """A tokenizer that pads with eos, as many do: training would lose sight of where responses end."""
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<eos>"}))
    backbone = load_backbone(ModelConfig(name=str(folder)))
    assert backbone.tokenizer.eos_token_id == EOS
    assert backbone.tokenizer.pad_token_id not in (None, EOS)
    assert backbone.causal_lm.get_input_embeddings().num_embeddings == VOCABULARY


def test_the_chat_template_is_set_as_the_recipe_says(tiny_model, tmp_path, caplog):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}{% if enable_thinking %} hm{% endif %}")
    data = DataConfig(chat_template=str(path), chat_template_kwargs={"enable_thinking": True})
    tokenizer = load_backbone(ModelConfig(name=str(tiny_model("llama"))), data).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "why"}], tokenize=False) == "why hm"
    assert "enable_thinking" not in caplog.text
    load_backbone(ModelConfig(name=str(tiny_model("llama"))), DataConfig(chat_template=str(path)))
    assert caplog.text.count("data.chat_template_kwargs: {enable_thinking: false}") == 1


def test_gemma_2_has_no_sdpa_attention_and_says_so(load_tiny, caplog):
    with caplog.at_level(logging.WARNING):
        backbone = load_tiny("gemma2", attn_implementation="sdpa")
    assert "no sdpa attention: eager is used" in caplog.text
    assert backbone.causal_lm.config._attn_implementation == "eager"
    caplog.clear()
    load_tiny("gemma2", attn_implementation="eager")
    load_tiny("llama")
    assert "attention" not in caplog.text
    assert load_tiny("llama", attn_implementation="sdpa").causal_lm.config._attn_implementation == "sdpa"
    assert load_tiny("llama", attn_implementation="eager").causal_lm.config._attn_implementation == "eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU does")
@pytest.mark.parametrize(("dtype", "expected"), [("float32", "sdpa"), ("bfloat16", "eager")])
def test_attention_on_a_cpu_follows_the_compute_type(load_tiny, dtype, expected):
    assert load_tiny("llama", compute_dtype=dtype).causal_lm.config._attn_implementation == expected


def test_compute_type_is_the_one_asked_for():
    assert compute_dtype(ModelConfig(name="m", compute_dtype="float32")) is torch.float32
    assert compute_dtype(ModelConfig(name="m", compute_dtype="bfloat16")) is torch.bfloat16
    assert compute_dtype(ModelConfig(name="m")) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("amx", "avx"), [(True, True), (True, False), (False, True), (False, False)])
def test_compute_type_on_a_cpu_is_bfloat16_only_where_that_is_fast(monkeypatch, amx, avx):
    monkeypatch.setattr(load, "accelerator", lambda: None)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    for speedup in (0.5, 2.0):  # the instruction alone does not make it faster
        monkeypatch.setattr(load, "bfloat16_speedup", lambda speedup=speedup: speedup)
        fast = (amx or avx) and speedup > 1
        assert compute_dtype(ModelConfig(name="m")) is (torch.bfloat16 if fast else torch.float32)


def test_the_speed_of_bfloat16_is_measured_once():
    load.bfloat16_speedup.cache_clear()
    assert 0 < load.bfloat16_speedup() == load.bfloat16_speedup() < 100
    assert load.bfloat16_speedup.cache_info().hits == 1


@pytest.mark.parametrize(("device", "supported"), [("cuda", True), ("cuda", False), ("xpu", True), ("mps", False)])
def test_compute_type_on_an_accelerator_is_bfloat16_only_where_it_is_native(monkeypatch, device, supported):
    """A T4 emulates bfloat16, and says that it supports it if one counts that; MPS says nothing."""
    monkeypatch.setattr(load, "accelerator", lambda: torch.device(device))
    if device != "mps":
        module = torch.get_device_module(device)
        monkeypatch.setattr(
            module, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
        )
    assert compute_dtype(ModelConfig(name="m")) is (torch.bfloat16 if supported else torch.float32)


def remove(name):
    return lambda folder: (folder / name).unlink()


def rename_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_eos(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "config.json"),
        (remove("model.safetensors"), "safetensors"),
        (only_pickle, "safetensors"),
        (remove("tokenizer.json"), "tokenizer"),
        (rename_type, "nonesuch"),
        (no_eos, "eos"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(tiny_model, tmp_path, damage, message):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_backbone(ModelConfig(name=str(folder)))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["no/such-model", "./no/such/folder", "nonesuch"])
def test_a_model_that_is_not_there(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"model\.name: ") as error:
        load_backbone(ModelConfig(name=name))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_the_head_is_quantised_where_asked_for(load_tiny):
    assert not isinstance(load_tiny("llama").causal_lm.get_output_embeddings(), bnb.nn.Linear4bit)
    backbone = load_tiny("llama", quantize_head=True)
    head = backbone.causal_lm.get_output_embeddings()
    assert isinstance(head, bnb.nn.Linear4bit)
    backbone.attach("policy", SHAPE)
    backbone.train_roles("policy")
    sequences = TokenBatch.from_lists([[5, 6]], [[7, 8, 9]])
    logprobs, _ = backbone.logprobs("policy", sequences)
    logprobs.sum().backward()
    weight = bnb.functional.dequantize_4bit(head.weight.data, head.weight.quant_state)
    with torch.no_grad(), backbone.role("policy"):
        logits = backbone.hidden_states("policy", sequences)[0, 1:-1] @ weight.t().float()
    assert_close(logprobs[0].detach(), logits.log_softmax(-1)[torch.arange(3), torch.tensor([7, 8, 9])])
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.role_parameters("policy"))


def test_a_head_that_is_the_embedding_cannot_be_quantised(load_tiny):
    with pytest.raises(UserError, match=r"model.quantize_head: the output layer of .* is its embedding"):
        load_tiny("smollm", quantize_head=True)


@pytest.mark.parametrize(("quantization", "bits"), [("nf4", 4), ("int8", 8)])
def test_a_mixture_whose_experts_stay_in_16_bits_is_refused_before_it_loads(
    tiny_model, monkeypatch, quantization, bits
):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match=rf"only \d+% of .* could be held in {bits} bits") as error:
        load_backbone(ModelConfig(name=str(tiny_model("mixtral")), quantization=quantization))
    assert "\n" not in str(error.value)


def test_linear_layers_that_bitsandbytes_passes_over_do_not_count(tiny_model, monkeypatch):
    """Falcon has a kind of its own, which would stay as it is."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match=r"only 0% of .* could be held in 4 bits"):
        load_backbone(ModelConfig(name=str(tiny_model("falcon"))))


def test_an_encoder_and_decoder_is_refused_before_it_loads(tiny_model, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_model("bart"), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"is_encoder_decoder": True}))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match="is an encoder and a decoder; choose a model that is a decoder only"):
        load_backbone(ModelConfig(name=str(folder)))


def test_a_model_without_a_list_of_layers_is_refused_before_it_loads(tiny_model, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match="HrmTextForCausalLM does not keep its layers in one list"):
        load_backbone(ModelConfig(name=str(tiny_model("hrm_text")), quantization="none"))


def test_a_package_that_the_model_needs_is_one_line(tiny_model, monkeypatch):
    def needs(*args, **kwargs):
        raise ImportError("\nAModel requires the timm library\nbut it was not found")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", needs)
    with pytest.raises(UserError, match="needs a package that is not installed: AModel requires the timm library but"):
        load_backbone(ModelConfig(name=str(tiny_model("llama"))))


@pytest.mark.parametrize(
    ("name", "hint"), [("llamma", "did you mean llama?"), ("nothing/of/the/kind", "check the path")]
)
def test_a_path_that_leads_nowhere_is_no_strange_hub_id(tiny_model, name, hint):
    folder = tiny_model("llama")
    with pytest.raises(UserError) as error:
        load_model_config(ModelConfig(name=str(folder.parent / name)))
    assert str(error.value) == f"model.name: '{folder.parent / name}': no such folder; {hint}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, b"[" * 100_000) for name in ("config.json", "tokenizer.json", "generation_config.json")),
        *(
            (name, b"[]")
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
        ),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b'{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "x"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"x" * 100),
        ("config.json", b'{"model_type": []}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": "x"}'),
        ("config.json", b'{"model_type": "llama", "num_attention_heads": 0}'),
    ],
)
def test_a_damaged_file_of_a_model_is_one_line(tiny_model, tmp_path, name, content):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"model.name: cannot load '{folder}': ") as error:
        load_backbone(ModelConfig(name=str(folder), quantization="none"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize(
    ("key", "message"), [("num_hidden_layers", "9 of the weights .*layers.2"), ("intermediate_size", "another shape")]
)
def test_weights_that_the_config_does_not_fit_are_not_drawn_at_random(tiny_model, tmp_path, quantization, key, message):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: config[key] + (1 if "layers" in key else 32)}))
    with pytest.raises(UserError, match=message) as error:
        load_backbone(ModelConfig(name=str(folder), quantization=quantization))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)

"""Tiny random models of every family, and backbones on them, shared by all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lorarlhf.backbone import SharedBackbone
from lorarlhf.base_model import load_backbone
from lorarlhf.config import LoraShape, ModelConfig

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .?\n:UA"
SHAPE = LoraShape(r=4, alpha=8, target_modules="all-linear")

# Each family's own config, where it differs from COMMON. No dropout is switched off here: loading has to do that.
COMMON = {
    "vocab_size": len(SPECIAL) + len(CHARACTERS),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,  # at the usual 0.02 a tiny model hardly looks at its context
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 32}
GEMMA = {**GROUPED, "tie_word_embeddings": True, "sliding_window": 4, "query_pre_attn_scalar": 32}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "tie_word_embeddings": True}
FAMILIES = {
    "llama": ("llama", {**GROUPED, "attention_dropout": 0.1}),
    "smollm": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", GROUPED),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 4}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
    "phi3": ("phi3", {"num_key_value_heads": 1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", {"hidden_dropout": 0.1}),
    "opt": ("opt", {"ffn_dim": 128}),
    "opt_projected": ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 128, "do_layer_norm_before": False}),
    "olmo2": ("olmo2", {"num_key_value_heads": 1}),
}


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, so that a vocabulary of 37 spells any prompt of the tests."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def make_model(family: str, folder: Path) -> Path:
    """Save a random model of a family and its tokenizer, as a published one would be; float32 weights."""
    model_type, own = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**COMMON, **own})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases would be 0 and norms 1, and nobody would notice them missing
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Callable[[str], Path]:
    """`tiny_model(family)`: the folder of a tiny random model of that family, made once."""
    made: dict[str, Path] = {}

    def path(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return path


@pytest.fixture
def load_tiny(tiny_model) -> Callable[..., SharedBackbone]:
    """`load_tiny(family, **options of ModelConfig)`: a fresh backbone, NF4 and float32 unless told otherwise."""

    def load(family: str, **options) -> SharedBackbone:
        config = ModelConfig(name=str(tiny_model(family)), **{"compute_dtype": "float32", **options})
        return load_backbone(config)

    return load


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


def randomise(backbone: SharedBackbone, *roles: str, scale: float = 0.1) -> None:
    """Make adapters do something: a fresh one has B = 0."""
    with torch.no_grad():
        for role in roles:
            for parameter in backbone.role_parameters(role):
                parameter.add_(scale * torch.randn_like(parameter))

"""Models of named architectures with random weights, made in place: speed and memory do not depend on the values."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, **others: Any) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **others,
    )


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=32_000,
        tie_word_embeddings=False,
    )


ARCHITECTURES = {
    "cpu": lambda: _llama(384, 6, 6, 2, 1024),
    "cpu-small": lambda: _llama(256, 4, 4, 2, 704),
    "cpu-large": lambda: _llama(576, 10, 9, 3, 1536),
    "qwen2.5-0.5b": lambda: _qwen2(896, 24, 14, 2, 4864, vocab_size=151_936, tie_word_embeddings=True),
    "qwen2.5-1.5b": lambda: _qwen2(1536, 28, 12, 2, 8960, vocab_size=151_936, tie_word_embeddings=True),
    "qwen2.5-3b": lambda: _qwen2(2048, 36, 16, 2, 11008, vocab_size=151_936, tie_word_embeddings=True),
    "qwen2.5-7b": lambda: _qwen2(3584, 28, 28, 4, 18944, vocab_size=152_064, tie_word_embeddings=False),
    "qwen2.5-14b": lambda: _qwen2(5120, 48, 40, 8, 13824, vocab_size=152_064, tie_word_embeddings=False),
    "qwen2.5-32b": lambda: _qwen2(5120, 64, 40, 8, 27648, vocab_size=152_064, tie_word_embeddings=False),
}


def architecture(name: str, attention: str | None = None) -> PreTrainedConfig:
    """The configuration of a name in ARCHITECTURES, without special tokens; None: the attention transformers takes."""
    config = ARCHITECTURES[name]()
    config._attn_implementation = attention
    config.bos_token_id = config.eos_token_id = None
    config.pad_token_id = 0
    return config


def weights(name: str) -> int:
    """How many weights a model of this architecture has."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture(name)).num_parameters()


def random_model(config: PreTrainedConfig, quantization: str, dtype: torch.dtype, classifier: bool) -> PreTrainedModel:
    """A model with random weights on the GPU if there is one; linear layers in NF4 but for the head."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    config.num_labels = 1
    with device:
        model = kind.from_config(config, dtype=dtype)
    if quantization == "nf4":
        _quantize(model.base_model, dtype)
        model.is_loaded_in_4bit = model.is_quantized = True
        config4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        model.hf_quantizer = Bnb4BitHfQuantizer(config4)  # whom the Trainer asks whether 4 bits can be trained
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return model.requires_grad_(False)


def quantize_head(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """The output layer in NF4 too, as `model.quantize_head` has it."""
    _quantize(model, dtype)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _quantize(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and not isinstance(child, Linear4bit):
            layer = Linear4bit(
                child.in_features, child.out_features, child.bias is not None, compute_dtype=dtype, quant_type="nf4"
            )
            device = child.weight.device
            layer.weight = Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4").to(device)
            if child.bias is not None:
                layer.bias = nn.Parameter(child.bias.data, requires_grad=False)
            layer.support_avx512bf16_for_cpu = False
            setattr(module, name, layer)
        else:
            _quantize(child, dtype)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word a token, for trainers that take prompts as text alone: ids become words and the same ids again."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{token}": token for token in range(3, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def placeholder_tokenizer() -> PreTrainedTokenizerFast:
    """The trainers ask a tokenizer for its special tokens; no text is ever tokenised."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")

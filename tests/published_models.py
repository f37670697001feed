"""Configs of the models that shipped recipes name, as published on the Hub."""

from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)


def _config(kind: type[PreTrainedConfig], hidden, layers, heads, kv_heads, intermediate, vocabulary, tied, **others):
    return kind(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        **others,
    )


GEMMA = {"head_dim": 256, "sliding_window_pattern": 6}
GEMMA_4B_TEXT = _config(Gemma3TextConfig, 2560, 34, 8, 4, 10_240, 262_208, True, sliding_window=1024, **GEMMA)
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}

PUBLISHED = {
    "EleutherAI/pythia-1b-deduped": GPTNeoXConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=8, intermediate_size=8192, vocab_size=50_304
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": _config(Qwen2Config, 896, 24, 14, 2, 4864, 151_936, True),
    "Qwen/Qwen2.5-1.5B-Instruct": _config(Qwen2Config, 1536, 28, 12, 2, 8960, 151_936, True),
    "Qwen/Qwen2.5-7B-Instruct": _config(Qwen2Config, 3584, 28, 28, 4, 18944, 152_064, False),
    "Qwen/Qwen3-0.6B": _config(Qwen3Config, 1024, 28, 16, 8, 3072, 151_936, True, head_dim=128),
    "Qwen/Qwen3-1.7B": _config(Qwen3Config, 2048, 28, 16, 8, 6144, 151_936, True, head_dim=128),
    "Qwen/Qwen3-8B": _config(Qwen3Config, 4096, 36, 32, 8, 12_288, 151_936, False, head_dim=128),
    "Qwen/Qwen3-14B": _config(Qwen3Config, 5120, 40, 40, 8, 17_408, 151_936, False, head_dim=128),
    "Qwen/Qwen3-4B-Instruct-2507": _config(Qwen3Config, 2560, 36, 32, 8, 9728, 151_936, True, head_dim=128),
    "google/gemma-3-1b-it": _config(Gemma3TextConfig, 1152, 26, 4, 1, 6912, 262_144, True, sliding_window=512, **GEMMA),
    "google/gemma-3-4b-it": Gemma3Config(text_config=GEMMA_4B_TEXT.to_dict(), vision_config=SIGLIP),
    "meta-llama/Llama-3.2-1B-Instruct": _config(LlamaConfig, 2048, 16, 32, 8, 8192, 128_256, True, head_dim=64),
    "meta-llama/Llama-3.1-8B-Instruct": _config(LlamaConfig, 4096, 32, 32, 8, 14336, 128_256, False),
    "meta-llama/Llama-3.2-3B-Instruct": _config(LlamaConfig, 3072, 28, 24, 8, 8192, 128_256, True, head_dim=128),
    "mistralai/Mistral-7B-Instruct-v0.3": _config(
        MistralConfig, 4096, 32, 32, 8, 14336, 32_768, False, sliding_window=None
    ),
    "microsoft/Phi-4-mini-instruct": _config(
        Phi3Config, 3072, 32, 24, 8, 8192, 200_064, True, sliding_window=262_144, pad_token_id=199_999
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _config(LlamaConfig, 576, 30, 9, 3, 1536, 49_152, True),
    "HuggingFaceTB/SmolLM3-3B": _config(SmolLM3Config, 2048, 36, 16, 4, 11_008, 128_256, True),
}
# Billions of parameters, as the model cards say.
BILLIONS = {
    "EleutherAI/pythia-1b-deduped": 1.012,
    "Qwen/Qwen3-0.6B": 0.596,
    "Qwen/Qwen3-1.7B": 1.721,
    "Qwen/Qwen3-8B": 8.191,
    "Qwen/Qwen3-14B": 14.768,
    "google/gemma-3-1b-it": 0.99989,
    "google/gemma-3-4b-it": 4.300,
    "meta-llama/Llama-3.2-1B-Instruct": 1.2358,
    "microsoft/Phi-4-mini-instruct": 3.836,
    "HuggingFaceTB/SmolLM3-3B": 3.075,
    "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.544,
    "Qwen/Qwen2.5-7B-Instruct": 7.616,
    "Qwen/Qwen3-4B-Instruct-2507": 4.022,
    "meta-llama/Llama-3.1-8B-Instruct": 8.030,
    "meta-llama/Llama-3.2-3B-Instruct": 3.213,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.1345,
}

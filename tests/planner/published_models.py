"""Configs of the models that shipped recipes name, as published on the Hub."""

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config


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


PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": _config(Qwen2Config, 896, 24, 14, 2, 4864, 151_936, True),
    "Qwen/Qwen2.5-1.5B-Instruct": _config(Qwen2Config, 1536, 28, 12, 2, 8960, 151_936, True),
    "Qwen/Qwen2.5-7B-Instruct": _config(Qwen2Config, 3584, 28, 28, 4, 18944, 152_064, False),
    "Qwen/Qwen3-4B-Instruct-2507": _config(Qwen3Config, 2560, 36, 32, 8, 9728, 151_936, True, head_dim=128),
    "meta-llama/Llama-3.1-8B-Instruct": _config(LlamaConfig, 4096, 32, 32, 8, 14336, 128_256, False),
    "meta-llama/Llama-3.2-3B-Instruct": _config(LlamaConfig, 3072, 28, 24, 8, 8192, 128_256, True, head_dim=128),
    "mistralai/Mistral-7B-Instruct-v0.3": _config(
        MistralConfig, 4096, 32, 32, 8, 14336, 32_768, False, sliding_window=None
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _config(LlamaConfig, 576, 30, 9, 3, 1536, 49_152, True),
}
# Billions of parameters, as the model cards say.
BILLIONS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 0.494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.544,
    "Qwen/Qwen2.5-7B-Instruct": 7.616,
    "Qwen/Qwen3-4B-Instruct-2507": 4.022,
    "meta-llama/Llama-3.1-8B-Instruct": 8.030,
    "meta-llama/Llama-3.2-3B-Instruct": 3.213,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.1345,
}

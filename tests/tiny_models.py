"""Tiny random models of every supported family, each of the family's own config."""

from collections.abc import Iterable
from pathlib import Path

import torch
from every_family import tiny_config
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import LoraShape

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .?\n:UA"
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
SHAPE = LoraShape(r=4, alpha=8, target_modules="all-linear")
ROLES = ("policy", "reference", "reward", "critic")

TOKENS = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.15,  # at the usual 0.02 a tiny model hardly looks at its context
    "is_decoder": True,
}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,  # at the usual 0.02 a tiny model hardly looks at its context
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 32}
GEMMA = {
    **GROUPED,
    "tie_word_embeddings": True,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 32,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "tie_word_embeddings": True}
# Model type and what differs from COMMON. Dropout is left on: loading has to switch it off.
FAMILIES = {
    "llama": ("llama", {**GROUPED, "attention_dropout": 0.1}),
    "smollm": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {**GROUPED, "attention_dropout": 0.1}),  # Qwen2.5 is the same
    "qwen3": ("qwen3", GROUPED),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 4}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0}),
    "gemma3_text": ("gemma3_text", GEMMA),
    "phi3": ("phi3", {"num_key_value_heads": 1, "sliding_window": 4, "resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", {"hidden_dropout": 0.1}),
    "opt": ("opt", {"ffn_dim": 128}),
    "opt_projected": ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 128, "do_layer_norm_before": False}),
    "olmo2": ("olmo2", {"num_key_value_heads": 1}),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character: 37 of them spell every prompt of the tests."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def make_model(family: str, folder: Path) -> Path:
    """Save a float32 model and its tokenizer as a published one would be; of any family in transformers' mapping."""
    if family in FAMILIES:
        model_type, own = FAMILIES[family]
        config = AutoConfig.for_model(model_type, **{**COMMON, **own})
    else:
        config = tiny_config(family, **TOKENS)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at 0 and norms at 1: nobody would notice one missing
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if type(model.config) is not type(config):  # of a model that takes images too, it is published whole
        config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def randomise(backbone: SharedBackbone, *roles: str) -> None:
    """Make adapters do something: fresh ones have B = 0."""
    with torch.no_grad():
        for role in roles:
            for parameter in backbone.role_parameters(role):
                parameter.add_(0.1 * torch.randn_like(parameter))


def attach_all(backbone: SharedBackbone) -> SharedBackbone:
    """Every role with an adapter of its own; policy and critic train."""
    for role in ROLES:
        backbone.attach(role, SHAPE)
    randomise(backbone, *ROLES)
    backbone.train_roles("policy", "critic")
    return backbone


def snapshot(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def mixed_sequences() -> TokenBatch:
    """Prompts of 1 to 5 tokens; responses of none, one and the most; pad and eos among the real tokens of both.

    Padding holds random ids, as no computation may look at it.
    """
    prompts = [[5, 6, 7], [PAD, 9, EOS, PAD, 8], [4], [EOS, EOS], [20, 21, 22, 23, 24]]
    responses = [[EOS, PAD, 10, 30, EOS, 11], [], [11], [12, 13, PAD], [PAD, EOS]]
    sequences = TokenBatch.from_lists(prompts, responses)
    padding = torch.arange(sequences.tokens.shape[1]) >= sequences.lengths.unsqueeze(1)
    sequences.tokens[padding] = torch.randint(VOCABULARY, (int(padding.sum()),))
    return sequences


def rows_of(sequences: TokenBatch) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each row as plain lists."""
    spans = zip(sequences.prompt_lengths.tolist(), sequences.lengths.tolist(), strict=True)
    rows = zip(sequences.tokens.tolist(), spans, strict=True)
    return [(row[:start], row[start:end]) for row, (start, end) in rows]


def assert_identical(actual, expected) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


def expected_trained(backbone: SharedBackbone) -> set[str]:
    """By PEFT's own names, not by what the backbone says belongs to a role."""
    return {name for name, _ in backbone.named_parameters() if ".policy." in name or ".critic." in name}


def requiring_grad(backbone: SharedBackbone) -> set[str]:
    return {name for name, p in backbone.named_parameters() if p.requires_grad}

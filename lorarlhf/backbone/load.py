"""Load the frozen base model: quantised, without dropout, from safetensors only."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from lorarlhf.backbone.base import identify_base
from lorarlhf.backbone.checks import check_model
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.backbone.trunk import layers_path
from lorarlhf.backbone.weights import announce_weights
from lorarlhf.data.tokenizer import prepare_tokenizer
from lorarlhf.errors import UserError, first_line
from lorarlhf.memory import accelerator
from lorarlhf.recipe.sections import DataConfig, ModelConfig
from lorarlhf.recipe.shipped import resolve_path

PLAIN_DATA = DataConfig()
SMALL = 2**26  # bytes of weights that are loaded before one wonders what goes on
# What transformers raises where a name is wrong, or a file of a model is damaged or holds other values than it should.
NO_MODEL = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError),
    *(StrictDataclassError, SafetensorError),
)
logger = logging.getLogger(__name__)


def load_backbone(config: ModelConfig, data: DataConfig = PLAIN_DATA) -> SharedBackbone:
    """Load base model and tokenizer onto the accelerator if there is one, else the CPU.

    Args:
        data: says which chat template the tokenizer gets, and how that is set.

    Raises:
        UserError: no such model, no safetensors in it, no room on the disk to fetch it, or a family transformers does
            not know.
    """
    model_config = load_model_config(config)
    tokenizer = load_tokenizer(config)
    dtype = compute_dtype(config)
    _check_family(config, model_config)
    device = PartialState(cpu=accelerator() is None).device  # of several processes, each has its own
    announce_weights(config, model_config)
    if not _is_small(config):
        logger.info("%s: loading, %s in %s on %s", config.name, config.quantization, str(dtype)[6:], device.type)
    causal_lm = _load_weights(config, model_config, dtype, device)
    used = causal_lm.config._attn_implementation
    if config.attn_implementation not in ("auto", used):
        logger.warning("this model has no %s attention: %s is used", config.attn_implementation, used)
    if accelerator() and config.compute_dtype == "auto" and dtype == torch.float32:
        # Not float16: gradients underflow in it, and activations of models made in bfloat16 overflow.
        logger.warning("this GPU has no fast bfloat16: float32 is used, which takes several times as long")
    _keep_autograd_on_cpu(causal_lm)
    for choice in prepare_tokenizer(tokenizer, causal_lm.config.get_text_config().vocab_size, data):
        logger.warning(choice)
    base = identify_base(config, getattr(model_config, "_commit_hash", None))
    backbone = SharedBackbone(causal_lm, tokenizer, dtype, base)
    check_model(backbone)
    return backbone


def _load_weights(
    config: ModelConfig, model_config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    with _plain_errors(config):
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # a pair, which its types do not know
            resolve_path(config.name),
            config=model_config,
            revision=config.revision,
            dtype=dtype,
            quantization_config=quantization_config(config, dtype),
            attn_implementation=attention(config, dtype),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            device_map={"": device},
            output_loading_info=True,
        )
    causal_lm: PreTrainedModel = loaded[0]
    report: dict[str, set[str]] = loaded[1]
    # Transformers would draw what is missing at random, and takes quantised weights of any shape.
    faults = sorted(report["missing_keys"]) or [
        f"{name}.weight" for name, module in causal_lm.named_modules() if not _has_its_shape(module)
    ]
    if faults:
        raise UserError(
            f"model.name: '{config.name}': {len(faults)} of the weights that its config.json asks for are not in its "
            f"files, or in another shape: {faults[0]}{', ...' if len(faults) > 1 else ''}; get the model again"
        )
    return causal_lm


def _has_its_shape(module: nn.Module) -> bool:
    """False for a linear layer whose quantised weight is of other sizes than its model's config says."""
    if not isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
        return True
    state = getattr(module.weight, "quant_state", None)  # of four bits, which are packed
    shape = module.weight.shape if state is None else state.shape
    return tuple(shape) == (module.out_features, module.in_features)


def load_model_config(config: ModelConfig) -> PreTrainedConfig:
    """The model's own configuration without what it does in training alone: dropout, and noise of routers.

    PPO's ratios would not be 1 with it.

    Raises UserError if there is none, or if it has no output layer of its own and the recipe wants it quantised.
    """
    _check_folder(config)
    if config.trust_remote_code:
        version = f" at {config.revision}" if config.revision else ""
        logger.info("model.trust_remote_code: code of %s%s is run", resolve_path(config.name), version)
    with _plain_errors(config):
        model_config: PreTrainedConfig = AutoConfig.from_pretrained(
            resolve_path(config.name), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    _disable_training_mode(model_config)
    if config.quantize_head and model_config.get_text_config().tie_word_embeddings:
        raise UserError(
            f"model.quantize_head: the output layer of '{config.name}' is its embedding, which stays in 16 bits; "
            "set it to false"
        )
    return model_config


def _is_small(config: ModelConfig) -> bool:
    folder = Path(resolve_path(config.name))
    return folder.is_dir() and sum(file.stat().st_size for file in folder.glob("*.safetensors")) < SMALL


def _check_folder(config: ModelConfig) -> None:
    """Raise UserError for a path that leads nowhere, which would else be taken for a strange Hub id."""
    path = Path(resolve_path(config.name))
    if not config.name.startswith((".", "/", "~")) or path.exists():
        return
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside)
    hint = f"did you mean {' or '.join(near)}?" if near else "check the path"
    raise UserError(f"model.name: '{config.name}': no such folder; {hint}")


def _disable_training_mode(config: PreTrainedConfig) -> None:
    """In the configs inside it too: a model of text and images has one for each tower."""
    values = vars(config)
    for key, value in values.items():
        if isinstance(value, PreTrainedConfig):
            _disable_training_mode(value)
        elif ("dropout" in key or key.endswith("pdrop") or "jitter" in key) and isinstance(value, float):
            if (config.model_type, key) != ("phimoe", "router_jitter_noise"):  # no noise there, but a threshold
                setattr(config, key, 0.0)
        elif key == "altup_coef_clip":  # Gemma 3n clamps weights, which are frozen here, and quantised cannot be
            values[key] = None  # not by setattr: its declared type is a number, though its code asks for None


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer as it was published. Raises UserError if it cannot be had."""
    with _plain_errors(config):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve_path(config.name), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        tokenizer("tried")  # some values are not looked at before
    return tokenizer


def compute_dtype(config: ModelConfig) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, unless the recipe says which."""
    if config.compute_dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.compute_dtype]
    return torch.bfloat16 if _bfloat16_is_fast() else torch.float32


def _bfloat16_is_fast() -> bool:
    device = accelerator()
    if device is None:
        has_instruction = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return has_instruction and bfloat16_speedup() > 1
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)  # MPS does not say
    return bool(supported and supported(including_emulation=False))


@functools.cache
def bfloat16_speedup() -> float:
    """How many times faster than in float32 this CPU multiplies in bfloat16; measured once a process.

    Having the instruction says little: of two CPUs with AVX512-BF16 one took half the time of float32 for a pass of a
    model, the other twice the time for its products and 1.6 times for a pass.
    """
    pairs = {dtype: torch.ones(2, 768, 768, dtype=dtype).unbind() for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(pairs, math.inf)
    for _ in range(6):  # by turns, and the best of each: others may be at work; the first of each sets up
        for dtype, (left, right) in pairs.items():
            start = time.perf_counter()
            left @ right
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def attention(config: ModelConfig, dtype: torch.dtype) -> str | None:
    """What to ask transformers for; None takes its own choice, sdpa where the family has it.

    torch's CPU kernel for sdpa in bfloat16 is up to ten times slower than plain matrix products at the lengths of PPO.
    """
    if config.attn_implementation == "auto":
        return "eager" if dtype == torch.bfloat16 and accelerator() is None else None
    # Said out loud, sdpa is an error for families that have no such attention (Gemma 2).
    return None if config.attn_implementation == "sdpa" else config.attn_implementation


def quantization_config(config: ModelConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds the weights (NF4: Dettmers et al. 2023), multiplied in `dtype`; None for 16 or 32 bits."""
    if config.quantization == "none":
        return None
    skipped: list[str] | None = [] if config.quantize_head else None  # None leaves out the language-model head
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def _check_family(config: ModelConfig, model_config: PreTrainedConfig) -> None:
    """Raise UserError for what cannot be trained, as far as that shows without the weights (the rest: `checks.py`)."""
    if model_config.is_encoder_decoder:
        raise UserError(
            f"model.name: '{config.name}' is an encoder and a decoder; choose a model that is a decoder only"
        )
    with _plain_errors(config), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
    layers_path(model)
    if config.quantization != "none":
        _check_quantisable(config, model)


def _check_quantisable(config: ModelConfig, model: PreTrainedModel) -> None:
    """Raise UserError if most of the weights would keep their 16 bits: bitsandbytes takes linear layers alone."""
    # Embedding and head are not counted: they stay in 16 bits in every model, and are most of a very small one.
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    total = sum(p.numel() for p in model.parameters() if id(p) not in ends)
    modules = [module for module in model.modules() if type(module) is nn.Linear or isinstance(module, Conv1D)]
    linear = sum(module.weight.numel() for module in modules if id(module.weight) not in ends)
    if 2 * linear < total:
        bits = {"nf4": 4, "int8": 8}[config.quantization]
        raise UserError(
            f"model.quantization: only {linear / total:.0%} of {config.name} could be held in {bits} bits, as the rest "
            "is no plain linear layers (experts of a mixture are not); set it to none or choose another model"
        )


def _keep_autograd_on_cpu(model: PreTrainedModel) -> None:
    """On AVX512-BF16 CPUs a no-grad forward repacks 4-bit weights, and training through them then goes wrong."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def _plain_errors(config: ModelConfig) -> Iterator[None]:
    """Turn what `from_pretrained` raises about a wrong name, or about damaged files, into one line."""
    try:
        yield
    except ImportError as error:  # transformers' own says which package, on its second line
        reason = " ".join(str(error).split())
        raise UserError(f"model.name: '{config.name}' needs a package that is not installed: {reason}") from error
    except NO_MODEL as error:
        reason = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else first_line(error)
        if os.path.isdir(resolve_path(config.name)):
            hint = "the folder needs config.json, a tokenizer and *.safetensors"
        else:
            hint = "give a Hub id you have access to, or a local folder"
        raise UserError(f"model.name: cannot load '{config.name}': {reason}; {hint}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):  # out of memory is one, too
            raise
        raise UserError(
            f"model.name: '{config.name}': weights in its files have another shape than its config.json says; get the "
            "model again"
        ) from error

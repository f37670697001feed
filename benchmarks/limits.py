"""How near PPO's phases come to what the device can do: one JSON object on stdout.

    python benchmarks/limits.py -- --model qwen2.5-7b --prompt 256 --response 256 --gradient-checkpointing

Rollout: the bytes of weights and key-value cache that a step must read, over the measured copy bandwidth, is the least
time a step can take. Update: the model's FLOPs (2 a weight and token for each pass: forward, backward to the inputs,
and forward again with checkpointing; weights are frozen, so no pass for them; attention and adapters are not counted)
over the measured rate of a bfloat16 matrix product. What follows `--` goes to ppo.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from compare import HERE, measure
from random_models import architecture
from torch import nn
from transformers import AutoModelForCausalLM

NF4_BYTES = 0.5 + 1 / 64 * (1 + 4 / 256)  # and a scale a block of 64, itself in 8 bits (double quantisation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help="options of ppo.py")
    run = measure(HERE / "ppo.py", parser.parse_args().options)
    bandwidth, rate = copy_bandwidth(), matmul_rate()
    layers, head, kv_bytes = sizes(run["model"])
    batch, response = run["batch"], run["response"]
    weights = (layers * NF4_BYTES if run["quantization"] == "nf4" else layers * 2) + head * 2
    cache = batch * (run["prompt"] + response / 2) * kv_bytes
    least = response * (weights + cache) / bandwidth
    passes = 3 if run["gradient_checkpointing"] else 2
    tokens, responses = batch * (run["prompt"] + response), batch * response
    policy = 2 * passes * layers * tokens + 2 * 2 * head * responses  # the head's chunks are not computed again
    critic = 2 * passes * layers * tokens * run["top_layers"]
    update = run["epochs"] * (policy + critic)
    print(
        json.dumps(
            {
                "device": run["device"],
                "copy_gb_per_second": round(bandwidth / 1e9, 1),
                "bfloat16_tflop_per_second": round(rate / 1e12, 3),
                "rollout": {
                    "seconds": run["seconds"]["rollout"],
                    "least_seconds": round(least, 4),
                    "share_of_bandwidth": round(least / run["seconds"]["rollout"], 3),
                },
                "update": {
                    "seconds": run["seconds"]["update"],
                    "tflop": round(update / 1e12, 3),
                    "share_of_rate": round(update / rate / run["seconds"]["update"], 3),
                },
                "run": run,
            },
            indent=1,
        )
    )


def sizes(name: str) -> tuple[int, int, int]:
    """Weights of the linear layers, weights of the head, and bytes of key-value cache a token in 16 bits."""
    config = architecture(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear))
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_bytes = config.num_hidden_layers * 2 * config.num_key_value_heads * head_size * 2
    return layers, model.get_output_embeddings().weight.numel(), kv_bytes


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    source = torch.empty(2**28 if torch.cuda.is_available() else 2**26, device=device())
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / fastest(lambda: target.copy_(source))


def matmul_rate() -> float:
    """FLOPs a second of a large product in bfloat16."""
    n = 8192 if torch.cuda.is_available() else 2048
    a, b = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / fastest(lambda: a @ b)


def fastest(work: Callable[[], Any], times: int = 10) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()

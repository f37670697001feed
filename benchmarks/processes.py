"""Simulated, not measured: what several GPUs buy an iteration of PPO. One JSON object on stdout.

    python benchmarks/processes.py --out benchmarks/results/processes-simulated.json

Bytes that are exchanged come from the planner; bandwidth, rates and links are assumptions, which are printed with the
result and can be set. A decoding step takes the longer of reading the weights and the cache once and multiplying them;
scoring and update take their FLOPs at the assumed rate (2 a weight and token for each pass; attention and adapters are
not counted); a step of the optimiser waits for one ring all-reduce of all gradients. Responses of equal length, nothing
overlaps, and processes never wait for each other: real gains are smaller.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limits import NF4_BYTES, sizes
from random_models import architecture

from lorarlhf.planner.plan import Planner
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe

ADAM_BYTES = 8  # of AdamW in full precision for each trained weight, as the planner counts them
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Assumptions:
    """What is taken for granted.

    Attributes:
        bandwidth: GB/s of the GPU's memory, as decoding gets it.
        rate: TFLOP/s of matrix products with 4-bit weights.
        link: GB/s between processes, each way. latency: seconds of each exchange.
        prompt: tokens of each prompt; every response has the recipe's full length.
    """

    bandwidth: float = 500.0
    rate: float = 50.0
    link: float = 10.0
    latency: float = 1e-4
    prompt: int = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="qwen2.5-7b-12gb")
    parser.add_argument("--architecture", default="qwen2.5-7b", help="of random_models.py")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--links", type=float, nargs="+", default=[10.0, 1.0], help="GB/s")
    parser.add_argument("--bandwidth", type=float, default=Assumptions.bandwidth, help="GB/s")
    parser.add_argument("--rate", type=float, default=Assumptions.rate, help="TFLOP/s")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for batch in args.batches:
        recipe = load_recipe(args.recipe, sets=[f"ppo.batch_size={batch}"])
        exchanged = gradient_bytes(recipe, args.architecture)
        for link in args.links:
            assumed = Assumptions(bandwidth=args.bandwidth, rate=args.rate, link=link)
            for processes in args.processes:
                seconds = iteration(recipe, args.architecture, exchanged, processes, assumed)
                rows.append({"batch": batch, "link": link, "processes": processes, **rounded(seconds)})
    result = {
        "simulated": True,
        "recipe": args.recipe,
        "exchanged_megabytes_a_step": round(exchanged / 1e6, 1),
        "assumptions": asdict(Assumptions(bandwidth=args.bandwidth, rate=args.rate)) | {"link": args.links},
        "rows": rows,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def gradient_bytes(recipe: Recipe, name: str) -> float:
    """Of policy and critic together, as the planner counts their trained weights."""
    recipe = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"optim": "adamw_torch"})})
    plan = Planner(recipe, architecture(name), "cuda").ppo(recipe.data.max_prompt_length + recipe.ppo.response_length)
    return plan.phases[-1].parts["optimizer"] / ADAM_BYTES * GRADIENT_BYTES


def iteration(recipe: Recipe, name: str, exchanged: float, processes: int, assumed: Assumptions) -> dict[str, float]:
    """Seconds of each part of one iteration; every process has the same number of responses."""
    config = recipe.ppo
    layers, head, kv_bytes = sizes(name)
    rows, length = math.ceil(config.batch_size / processes), assumed.prompt + config.response_length
    rate = assumed.rate * 1e12

    read = layers * NF4_BYTES + head * 2 + rows * (assumed.prompt + config.response_length / 2) * kv_bytes
    step = max(read / (assumed.bandwidth * 1e9), 2 * (layers + head) * rows / rate)
    prefill = 2 * layers * rows * assumed.prompt / rate

    tokens, responses = rows * length, rows * config.response_length
    top = recipe.lora.for_role("critic").top_layers
    # Policy and reference whole; reward model and critic above the trunk, which the reference's pass goes through.
    score = 2 * tokens * layers * (2 + 2 * top) + 2 * 2 * responses * head
    passes = 3 if config.gradient_checkpointing else 2  # weights are frozen: no pass for their gradients
    update = config.num_ppo_epochs * (2 * passes * layers * tokens * (1 + top) + 2 * 2 * head * responses)

    steps = config.num_ppo_epochs * config.num_mini_batches
    ring = 2 * (processes - 1) / processes * exchanged / (assumed.link * 1e9)
    return {
        "rollout": config.response_length * step + prefill,
        "score": score / rate,
        "update": update / rate,
        "exchange": steps * (ring + assumed.latency) if processes > 1 else 0.0,
    }


def rounded(seconds: dict[str, float]) -> dict[str, Any]:
    """With their sum."""
    return {name: round(value, 2) for name, value in {**seconds, "iteration": sum(seconds.values())}.items()}


if __name__ == "__main__":
    main()

"""Time and memory of PPO on a model with random weights: one JSON object on stdout.

    python benchmarks/ppo.py --engine lorarlhf --model cpu --batch 32 --prompt 64 --response 64

Prompts and responses have a fixed length (nothing ends a response early), LoRA r=16 on all linear layers, policy and
critic trained. `--engine trl` is what trl_engines.py says: TRL 1.12's PPOTrainer, or with `--algorithm rloo` and `grpo`
the RLOOTrainer and GRPOTrainer of the TRL that is installed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from random_models import ARCHITECTURES, architecture, placeholder_tokenizer, quantize_head, random_model
from trl_engines import LORA_ALPHA, LORA_R, cap_memory, run_trl_groups, run_trl_ppo

from lorarlhf.memory import CUDA_CONTEXT, peak_memory_bytes, total_memory_bytes
from lorarlhf.recipe.sections import PPOConfig


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["lorarlhf", "trl"], default="lorarlhf")
    parser.add_argument("--model", choices=sorted(ARCHITECTURES), default="cpu")
    parser.add_argument("--quantization", choices=["nf4", "none"], default="nf4")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--algorithm", choices=["gae", "rloo", "grpo"], default="gae")
    parser.add_argument("--generations", type=int, default=4, help="responses to a prompt, of rloo and grpo")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2, help="measured ones, after one to warm up")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--top-layers", type=float, default=1.0, help="share of layers that reward and critic adapt")
    parser.add_argument("--recompute-logprobs", action=argparse.BooleanOptionalAction, default="auto")
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, default=True, help="of groups, by lorarlhf")
    parser.add_argument("--attention", choices=["sdpa", "eager"], help="default: what the engine takes by itself")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--optim", default="adamw_torch", help="of lorarlhf; paged_adamw_8bit needs CUDA")
    parser.add_argument("--quantize-head", action="store_true", help="the output layer in NF4 too")
    parser.add_argument("--memory-cap", type=float, help="GiB of the GPU that may be used, to stand for a smaller card")
    parser.add_argument("--processor-time", action="store_true", help="not the clock's, if other work runs beside")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if args.processor_time:
        time.perf_counter = time.process_time  # which the loop's clock reads
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    vocabulary = architecture(args.model).vocab_size
    prompts = [[rng.randrange(3, vocabulary) for _ in range(args.prompt)] for _ in range(args.batch)]
    of_trl = run_trl_ppo if args.algorithm == "gae" else run_trl_groups
    run = of_trl if args.engine == "trl" else run_lorarlhf
    with tempfile.TemporaryDirectory() as folder:
        iterations = run(args, prompts, Path(folder))[1:]
    seconds = {phase: sum(i[phase] for i in iterations) / len(iterations) for phase in iterations[0]}
    total = sum(seconds.values())
    print(
        json.dumps(
            {
                **vars(args),
                "seconds": {phase: round(value, 4) for phase, value in seconds.items()},
                "seconds_an_iteration": round(total, 4),
                "tokens_per_second": round(args.batch * args.response / total, 2),
                "peak_memory_gb": round(peak_memory_bytes() / 1e9, 4),
                "planned_peak_gb": round(planned_peak(args) / 1e9, 4) if args.engine == "lorarlhf" else None,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
                "threads": torch.get_num_threads(),
                "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "trl")},
            }
        )
    )


def run_lorarlhf(args: argparse.Namespace, prompts: list[list[int]], folder: Path) -> list[dict[str, float]]:
    from lorarlhf.backbone.load import attention
    from lorarlhf.backbone.shared import SharedBackbone
    from lorarlhf.data.tokenize import PromptExample
    from lorarlhf.recipe.sections import LoraShape, ModelConfig
    from lorarlhf.rl.algorithms import make_algorithm
    from lorarlhf.rl.learner import Learner
    from lorarlhf.rl.loop import train
    from lorarlhf.rl.process_group import ProcessGroup
    from lorarlhf.rl.state import TrainingState
    from lorarlhf.stages.ppo import make_parts

    dtype = getattr(torch, args.dtype)
    config = ModelConfig(name=args.model, attn_implementation=args.attention or "auto")
    model = random_model(architecture(args.model, attention(config, dtype)), args.quantization, dtype, classifier=False)
    if args.quantize_head:
        quantize_head(model, dtype)

    class Endless(SharedBackbone):
        stop_ids: list[int] = []  # noqa: RUF012  # nothing ends a response

    backbone = Endless(model, placeholder_tokenizer(), dtype)
    backbone.packs_prompts = args.packing
    shape = LoraShape(r=LORA_R, alpha=LORA_ALPHA, target_modules="all-linear")
    backbone.attach("policy", shape)
    backbone.attach("reward", shape.model_copy(update={"top_layers": args.top_layers}))
    ppo = ppo_config(args)
    algorithm = make_algorithm(ppo)
    if algorithm.has_critic:
        backbone.copy_role("reward", "critic")
    backbone.train_roles("policy", *(["critic"] if algorithm.has_critic else []))
    if ppo.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    cap_memory(args)
    examples = [PromptExample("", ids) for ids in prompts]
    seconds: list[dict[str, float]] = []

    def log(row: dict[str, Any]) -> None:
        seconds.append({k.removeprefix("seconds_"): v for k, v in row.items() if k.startswith("seconds_")})

    learner = Learner(backbone, ppo, backbone.trained_roles, folder, ProcessGroup(backbone.device))
    parts = make_parts(backbone, ppo, examples, [], [], log, folder, args.seed)
    train(parts, algorithm, ppo, TrainingState(ppo.kl_coef), learner)
    return seconds


def ppo_config(args: argparse.Namespace) -> PPOConfig:
    return PPOConfig(
        advantage_estimator=args.algorithm,
        num_generations=1 if args.algorithm == "gae" else args.generations,
        iterations=args.iterations + 1,
        batch_size=args.batch,
        response_length=args.response,
        num_ppo_epochs=args.epochs,
        num_mini_batches=args.minibatches,
        micro_batch_tokens=args.micro_batch_tokens,
        recompute_logprobs=args.recompute_logprobs,
        optim=args.optim,
        gradient_checkpointing=args.gradient_checkpointing,
        eval_every=0,
        save_every=0,
    )


def planned_peak(args: argparse.Namespace) -> int:
    """What `lorarlhf plan` would say of this run: called after it, as planning takes memory too."""
    from lorarlhf.planner.fit import this_target
    from lorarlhf.planner.plan import Planner
    from lorarlhf.recipe.sections import DataConfig, LoraConfig, ModelConfig, Recipe, ScalarLoraOverride

    recipe = Recipe(
        model=ModelConfig(
            name=args.model,
            quantization=args.quantization,
            quantize_head=args.quantize_head,
            compute_dtype=args.dtype,
            attn_implementation=args.attention or "auto",
        ),
        lora=LoraConfig(r=LORA_R, alpha=LORA_ALPHA, reward=ScalarLoraOverride(top_layers=args.top_layers)),
        data=DataConfig(max_prompt_length=args.prompt),
        ppo=ppo_config(args),
    )
    planner = Planner(recipe, architecture(args.model), this_target(), reference=False)
    capacity = int(args.memory_cap * 2**30) + CUDA_CONTEXT if args.memory_cap else total_memory_bytes()
    return planner.rollout_that_fits(capacity, args.micro_batch_tokens).allocated


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()

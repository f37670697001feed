"""Time and memory of the reward or sft stage on a real model and real comparisons: one JSON object on stdout.

    python benchmarks/stages.py --stage reward --model FOLDER --data comparisons.jsonl
    python benchmarks/compare.py --script stages.py --a "--engine lorarlhf" --b "--engine trl" -- \\
        --stage reward --model FOLDER --data comparisons.jsonl

`--engine trl` is the RewardTrainer or SFTTrainer of the TRL that is installed, with PEFT as its documentation has it:
LoRA on all linear layers, a head of its own, batches padded to their longest row. Both engines take the same tokenised
rows in the same order; what is measured is the steps, after one to warm up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, TaskType
from ppo import cpu_name
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PrinterCallback, TrainerCallback

from lorarlhf.backbone.load import load_backbone, load_tokenizer
from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.data.tokenized import preference_examples, sft_examples
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.planner.fit import plan_here
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import Recipe
from lorarlhf.recipe.stages import STAGES

LORA_R, LORA_ALPHA = 16, 32


def main() -> None:
    args = parse_arguments()
    quiet_libraries()
    recipe = load_recipe("smollm2-135m-cpu", sets=settings(args))
    ours = args.engine == "lorarlhf"
    with tempfile.TemporaryDirectory() as folder:
        trainer, tokens = (our_trainer if ours else trl_trainer)(args, recipe, Path(folder))
        steps, computed = Steps(), [0]
        model = trainer.backbone.causal_lm if ours else trainer.model
        embedding = model.get_input_embeddings()
        embedding.register_forward_pre_hook(lambda _, inputs: computed.append(inputs[0].numel()))
        trainer.add_callback(steps)
        trainer.remove_callback(PrinterCallback)
        with trainer.backbone.role(STAGES[args.stage].role) if ours else contextlib.nullcontext():
            trainer.train()
    seconds, processor = (round(sum(each[1:]) / args.steps, 4) for each in (steps.seconds, steps.processor))
    print(
        json.dumps(
            {
                **vars(args),
                "model": Path(args.model).name,
                "data": Path(args.data).name,
                "seconds": {"step": seconds, "step_of_processor": processor},  # the latter without waiting for it
                "seconds_an_iteration": seconds,
                "loss": [round(row["loss"], 6) for row in trainer.state.log_history if "loss" in row],
                "tokens_a_step": round(tokens / (args.steps + 1)),
                "computed_tokens_a_step": round(sum(computed) / (args.steps + 1)),  # with padding
                "peak_memory_gb": round(peak_memory_bytes() / 1e9, 4),
                "planned_peak_gb": planned(recipe, args) if ours else None,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
                "threads": torch.get_num_threads(),
                "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
            }
        )
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["lorarlhf", "trl"], default="lorarlhf")
    parser.add_argument("--stage", choices=["reward", "sft"], default="reward")
    parser.add_argument("--model", required=True, help="folder")
    parser.add_argument("--data", required=True, help="comparisons; sft takes their chosen sides")
    parser.add_argument("--quantization", choices=["nf4", "none"], default="none")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--length", type=int, default=192, help="rows of more tokens are left out")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="measured ones, after one to warm up")
    parser.add_argument("--top-layers", type=float, default=0.5, help="share of layers that the reward model adapts")
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, default=True, help="of pairs, by lorarlhf")
    parser.add_argument("--full-rows", action="store_true", help="random tokens up to the length, as a plan assumes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def settings(args: argparse.Namespace) -> list[str]:
    stage = args.stage
    return [
        *(f"model.name={args.model}", f"model.quantization={args.quantization}", f"model.compute_dtype={args.dtype}"),
        *(f"lora.r={LORA_R}", f"lora.alpha={LORA_ALPHA}", f"lora.reward.top_layers={args.top_layers}"),
        *(f"data.{'preferences' if stage == 'reward' else 'sft'}={args.data}", "data.test_size=0"),
        *(f"data.max_length={args.length}", f"data.max_examples={args.batch * args.accumulation * (args.steps + 1)}"),
        f"{stage}.per_device_train_batch_size={args.batch}",
        f"{stage}.gradient_accumulation_steps={args.accumulation}",
        *(f"{stage}.max_steps={args.steps + 1}", f"{stage}.logging_steps=1", f"{stage}.warmup_steps=0"),
        *(f"{stage}.learning_rate=1e-4", f"{stage}.lr_scheduler_type=constant", f"seed={args.seed}"),
        *(["reward.center_rewards_coefficient=0"] if stage == "reward" else []),
    ]


def rows_of(args: argparse.Namespace, recipe: Recipe, tokenizer: Any) -> tuple[Any, int]:
    """The rows, and how many tokens they have."""
    read, columns = (
        (preference_examples, ("chosen_ids", "rejected_ids"))
        if args.stage == "reward"
        else (sft_examples, ("input_ids",))
    )
    rows = read(recipe.data, tokenizer, "train").dataset
    if args.full_rows:
        rng = random.Random(args.seed)
        rows = rows.map(lambda row: {name: [rng.randrange(99, 9999) for _ in range(args.length)] for name in row})
    return rows, sum(len(ids) for column in columns for ids in rows[column])


def our_trainer(args: argparse.Namespace, recipe: Recipe, folder: Path) -> tuple[Any, int]:
    from lorarlhf.training.reward import RewardModelTrainer
    from lorarlhf.training.sft import PolicySFTTrainer

    backbone = load_backbone(recipe.model, recipe.data)
    backbone.packs_prompts = args.packing
    rows, tokens = rows_of(args, recipe, backbone.tokenizer)
    torch.manual_seed(args.seed)
    role = STAGES[args.stage].role
    backbone.attach(role, recipe.lora.for_role(role))
    if args.stage == "reward":
        backbone.reward_head.reset_parameters()  # by the seed, as the stage does
        return RewardModelTrainer(backbone, recipe.reward, rows, folder, args.seed), tokens
    return PolicySFTTrainer(backbone, recipe.sft, rows, rows.select([]), folder, args.seed), tokens


def trl_trainer(args: argparse.Namespace, recipe: Recipe, folder: Path) -> tuple[Any, int]:
    from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(recipe.model)
    rows, tokens = rows_of(args, recipe, tokenizer)
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": args.batch,
        "gradient_accumulation_steps": args.accumulation,
        "max_steps": args.steps + 1,
        "logging_steps": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": args.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "max_length": None,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": args.seed,
    }
    dtype = getattr(torch, args.dtype)
    scores = args.stage == "reward"
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS if scores else TaskType.CAUSAL_LM,
        r=LORA_R,
        lora_alpha=LORA_ALPHA,
        target_modules="all-linear",
        modules_to_save=["score"] if scores else None,
    )
    torch.manual_seed(args.seed)
    if scores:
        model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1, dtype=dtype)
        model.config.pad_token_id = tokenizer.pad_token_id
        kind, config = RewardTrainer, RewardConfig(**options)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
        kind, config = SFTTrainer, SFTConfig(**options)
    return kind(model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora), tokens


class Steps(TrainerCallback):
    """Seconds of each step, by the clock and of the processor."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.seconds.append(-time.perf_counter())
        self.processor.append(-time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds[-1] += time.perf_counter()
        self.processor[-1] += time.process_time()


def planned(recipe: Recipe, args: argparse.Namespace) -> float:
    return round(plan_here(args.stage, recipe).allocated / 1e9, 4)


if __name__ == "__main__":
    main()

"""TRL's trainers on the same work as benchmarks/ppo.py, set up as TRL's documentation does with PEFT.

PPO (TRL 1.12): policy with its reference by disabled adapter, and a reward and a value model of their own, each
quantised and with LoRA. RLOO and GRPO (the TRL installed): policy and reference alike, and a reward model of its own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from random_models import architecture, placeholder_tokenizer, random_model, word_tokenizer
from transformers import PrinterCallback, TrainerCallback

LORA_R, LORA_ALPHA = 16, 32
KL_COEF = 0.05

Seconds = list[dict[str, float]]  # of each iteration, by phase


def run_trl_ppo(args: argparse.Namespace, prompts: list[list[int]], folder: Path) -> Seconds:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    policy, reward, value = (with_lora(args, classifier) for classifier in (False, True, True))
    reward.requires_grad_(False)
    cap_memory(args)
    # TRL reads `base_model_prefix` and `score` of reward and value model, which a PeftModel hides one level down.
    reward, value = reward.base_model.model, value.base_model.model
    marks: dict[str, float] = {}
    seconds: Seconds = []

    def marking(function: Any, name: str) -> Any:
        def marked(*args: Any, **kwargs: Any) -> Any:
            marks.setdefault(name, now())
            return function(*args, **kwargs)

        return marked

    class Phases(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks["start"] = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            end = now()
            seconds.append(
                {
                    "rollout": marks["score"] - marks["start"],
                    "score": marks["update"] - marks["score"],
                    "update": end - marks["update"],
                }
            )
            marks.clear()
            marks["start"] = end

    ppo_trainer.get_reward = marking(ppo_trainer.get_reward, "score")
    wrapper = ppo_trainer.PolicyAndValueWrapper
    wrapper.forward = marking(wrapper.forward, "update")
    config = PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=args.batch // args.minibatches,
        gradient_accumulation_steps=args.minibatches,
        num_mini_batches=args.minibatches,
        num_ppo_epochs=args.epochs,
        total_episodes=(args.iterations + 1) * args.batch,
        local_rollout_forward_batch_size=args.batch,
        response_length=args.response,
        stop_token=None,
        num_sample_generations=0,
        temperature=1.0,
        gradient_checkpointing=args.gradient_checkpointing,
        bf16=args.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=args.seed,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=placeholder_tokenizer(),
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts[:8]}),
        callbacks=[Phases()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return seconds


def run_trl_groups(args: argparse.Namespace, prompts: list[list[int]], folder: Path) -> Seconds:
    """RLOO and GRPO: every prompt is answered several times, and what would be a prompt each is a group each."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    trainer_class, config_class = {
        "rloo": (RLOOTrainer, RLOOConfig),
        "grpo": (GRPOTrainer, GRPOConfig),
    }[args.algorithm]
    policy, reward = with_lora(args, False), with_lora(args, True).requires_grad_(False)
    cap_memory(args)
    seconds: Seconds = []
    steps = args.epochs * args.minibatches
    tokenizer = word_tokenizer(policy.config.vocab_size)

    class Timed(trainer_class):  # type: ignore[misc, valid-type]  # one of two
        """Notes when each iteration began to sample, to score and to update."""

        def _generate(self, *inputs: Any) -> Any:
            seconds.append({"rollout": -now()})
            result = super()._generate(*inputs)
            seconds[-1]["rollout"] += now()
            return result

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = now()
            result = super()._generate_and_score_completions(inputs)
            seconds[-1]["score"] = now() - start - seconds[-1]["rollout"]
            seconds[-1]["update"] = -now()
            return result

    class Ends(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step % steps == 0:
                seconds[-1]["update"] += now()

    groups = args.batch // args.generations
    config = config_class(
        output_dir=str(folder),
        num_generations=args.generations,
        per_device_train_batch_size=args.batch // args.minibatches,
        gradient_accumulation_steps=1,
        steps_per_generation=args.minibatches,
        num_iterations=args.epochs,
        max_steps=(args.iterations + 1) * steps,
        max_completion_length=args.response,
        generation_kwargs={"min_new_tokens": args.response},  # nothing ends a response
        beta=KL_COEF,
        temperature=1.0,
        gradient_checkpointing=args.gradient_checkpointing,
        bf16=args.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=args.seed,
    )
    trainer = Timed(
        model=policy,
        reward_funcs=reward,
        args=config,
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": text + " "} for text in tokenizer.batch_decode(prompts[:groups])]),
        callbacks=[Ends()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return seconds


def with_lora(args: argparse.Namespace, classifier: bool) -> Any:
    dtype = getattr(torch, args.dtype)
    model = random_model(architecture(args.model, args.attention), args.quantization, dtype, classifier)
    task = TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM
    return get_peft_model(
        model, LoraConfig(task_type=task, r=LORA_R, lora_alpha=LORA_ALPHA, target_modules="all-linear")
    )


def cap_memory(args: argparse.Namespace) -> None:
    """Called once the models are made: making them takes more than training them."""
    if args.memory_cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(args.memory_cap * 2**30 / total)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

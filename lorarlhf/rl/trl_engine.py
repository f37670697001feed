"""`lorarlhf ppo --engine trl`: TRL 1.12's own PPOTrainer on the shared backbone, the yardstick of ours.

Where the two mean different things is in docs/parity.md.
"""

from __future__ import annotations

import copy
import json
import time
from importlib import import_module
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.loop import LoopParts, evaluate
from lorarlhf.rl.prompts import is_due
from lorarlhf.rl.state import TrainingState

# Keys of `ppo` that TRL's PPOConfig has too, under the same name and with the same meaning.
SAME = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "num_ppo_epochs"),
    *("num_mini_batches", "response_length", "temperature", "missing_eos_penalty"),
    *("kl_coef", "kl_estimator", "cliprange", "cliprange_value", "vf_coef", "gamma", "lam", "whiten_rewards"),
)
# Keys that its trainer has nothing for, each with the value that switches it off.
NEUTRAL: dict[str, Any] = {
    "max_grad_norm": 1e6,
    "advantage_estimator": "gae",
    "num_generations": None,
    "kl_in": None,
    "critic_learning_rate": None,
    "entropy_coef": 0.0,
    "critic_warmup_iterations": 0,
    "early_stop_kl": None,
    "kl_target": None,
    "reward_functions": [],
    "reward_model_weight": 1.0,
    "normalize_reward": False,
    "reward_clip": None,
    "stop_when": None,
    "on_nan": "stop",
    "reward_timeout": None,
}
# TRL's logged numbers that are one of ours; the others keep TRL's name.
LOGGED = {
    "objective/kl": "kl",
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "policy/clipfrac_avg": "clip_fraction",
    "val/clipfrac_avg": "value_clip_fraction",
    "lr": "learning_rate",
}
SMALLEST_WHITENED = 8  # responses a minibatch, asserted by TRL


def check_trl(config: PPOConfig, resume: bool) -> None:
    """Raise UserError unless TRL's PPOTrainer is there and can do what the recipe asks."""
    _import_trl()
    if resume:
        raise UserError("--resume: TRL's PPO cannot go on from a checkpoint; run again without --resume")
    unlike = {key: neutral for key, neutral in NEUTRAL.items() if getattr(config, key) != neutral}
    if unlike:
        sets = " ".join(f"--set ppo.{key}={json.dumps(neutral)}" for key, neutral in unlike.items())
        raise UserError(f"--engine trl: TRL's PPO has no {', '.join(unlike)}; switch off with {sets}")
    rows = config.batch_size // config.num_mini_batches
    if config.whiten_rewards and rows < SMALLEST_WHITENED:
        raise UserError(
            f"ppo.whiten_rewards: TRL needs minibatches of {SMALLEST_WHITENED} responses or more, not {rows}; "
            "raise ppo.batch_size or lower ppo.num_mini_batches"
        )


def train_with_trl(parts: LoopParts, config: PPOConfig, state: TrainingState, learner: Learner) -> None:
    """Train policy and critic as TRL does; evaluation, logs and the best policy are ours, as ever."""
    trl_trainer(parts, config, state, learner).train()


def trl_trainer(parts: LoopParts, config: PPOConfig, state: TrainingState, learner: Learner) -> Any:
    """TRL's trainer for the same roles, prompts and settings."""
    trl = _import_trl()
    backbone, prompts = learner.backbone, parts.prompts.examples

    set_seed(parts.seed)  # TRL itself seeds torch, but not the numpy that shuffles its minibatches
    longest = max(len(example.ids) for example in prompts) + config.response_length
    arguments = trl.PPOConfig(
        **{key: getattr(config, key) for key in SAME},
        output_dir=str(parts.folder),
        seed=parts.seed,
        use_cpu=backbone.device.type == "cpu",
        total_episodes=config.iterations * config.batch_size,
        # An optimiser step comes after each `gradient_accumulation_steps` micro-batches, whatever the minibatch. With
        # 1, and a micro-batch that no minibatch exceeds, it comes after each minibatch.
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=min(config.batch_size, max(1, config.token_budget // longest)),
        stop_token="eos",
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",  # the loop's own log does
        disable_tqdm=True,
        gradient_checkpointing=False,  # the backbone does it, so that recomputation keeps its role
        dataloader_pin_memory=backbone.device.type != "cpu",
        bf16=False,  # the views compute in the backbone's type
    )
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.padding_side = "left"
    # TRL knows one end of a response, the tokenizer's eos; here it is the token the template ends a turn with.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(backbone.end_id)
    silent = type("PPOTrainer", (_Silent, trl.PPOTrainer), {})
    made = silent(
        args=arguments,
        processing_class=tokenizer,
        model=PolicyView(backbone),
        ref_model=RoleView(backbone, "reference", backbone.causal_lm),
        reward_model=ScalarView(backbone, "reward"),
        value_model=ScalarView(backbone, "critic"),
        train_dataset=Dataset.from_dict({"input_ids": [example.ids for example in prompts]}),
        callbacks=[_Report(parts, config, state, learner)],
    )
    made.remove_callback(PrinterCallback)
    return made


class _Silent:
    """Nothing phones home, and the export writes the only card."""

    def _send_telemetry(self) -> None: ...

    def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...


class RoleView(nn.Module):
    """A module of the backbone that computes as one role, whoever calls it."""

    def __init__(self, backbone: SharedBackbone, role: str, module: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.role = role
        self.module = module

    def forward(self, **kwargs: Any) -> Any:
        with self.backbone.role(self.role), self.backbone.autocast():
            return self.module(**kwargs)


class PolicyView(RoleView):
    """The policy, with what TRL asks of a causal language model beside its forward pass."""

    module: Any  # a causal language model
    is_gradient_checkpointing = False  # TRL need not know: the backbone does it

    def __init__(self, backbone: SharedBackbone) -> None:
        causal_lm = copy.copy(backbone.causal_lm)  # the same weights, with generation settings that TRL may change
        causal_lm.generation_config = GenerationConfig(pad_token_id=backbone.tokenizer.pad_token_id)
        super().__init__(backbone, "policy", causal_lm)

    @property
    def config(self) -> PreTrainedConfig:
        config: PreTrainedConfig = self.module.config
        return config

    @property
    def generation_config(self) -> GenerationConfig:
        config: GenerationConfig = self.module.generation_config
        return config

    def generate(self, **kwargs: Any) -> Any:
        self.module.eval()  # TRL samples in training mode, where checkpointed layers would take no cache
        with self.backbone.role(self.role), self.backbone.autocast():
            generated = self.module.generate(**kwargs)
        self.module.train()
        return generated


class ScalarView(nn.Module):
    """Reward model or critic as TRL takes a sequence classifier apart: a trunk, found by its name, and a `score`."""

    base_model_prefix = "trunk"

    def __init__(self, backbone: SharedBackbone, role: str) -> None:
        super().__init__()
        self.trunk = RoleView(backbone, role, backbone.trunk)
        self.score = backbone.head(role)


class _Report(TrainerCallback):
    """Passes TRL's iterations on to our log and evaluation."""

    def __init__(self, parts: LoopParts, config: PPOConfig, state: TrainingState, learner: Learner) -> None:
        self.parts = parts
        self.config = config
        self.state = state
        self.learner = learner
        self.began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config, logs = self.config, dict(logs or {})
        finished = logs["val/num_eos_tokens"] / config.batch_size
        # TRL logs scores with the penalty taken off.
        reward = logs.pop("objective/scores") + (config.missing_eos_penalty or 0.0) * (1 - finished)
        stats = {"reward": reward, "kl": logs["objective/kl"], "finished": finished}
        self.state.end_iteration(config, stats, config.num_ppo_epochs * config.num_mini_batches)
        self.parts.log(
            {
                "iteration": self.state.iteration,
                "step": self.state.step,
                **stats,
                **{LOGGED.get(name, name): value for name, value in logs.items()},
                "seconds": time.perf_counter() - self.began,
                "peak_memory_gb": peak_memory_bytes() / 1e9,
            }
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        done, config = self.state.iteration, self.config
        if self.parts.held_out is not None and is_due(done, config.eval_every, done == config.iterations):
            evaluate(self.parts, self.state, self.learner)
            self.learner.backbone.train()
        self.began = time.perf_counter()


def _import_trl() -> Any:
    try:
        return import_module("trl.experimental.ppo")
    except ImportError as error:
        raise UserError(
            f"--engine trl: the installed trl has no PPO ({error}); TRL 1.12 is the last with it: "
            'pip install "lorarlhf[trl-ppo]"'
        ) from None

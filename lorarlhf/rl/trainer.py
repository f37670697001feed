"""PPO as a transformers Trainer whose data loader makes its own experience."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.backbone.trunk import TrunkStates
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.generation.sample import Rollout, response_texts, sample_responses
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.recipe.sections import PPOConfig, Role
from lorarlhf.rl.experience import Experience, build_experience
from lorarlhf.rl.kl import AdaptiveKL, kl_estimate
from lorarlhf.rl.losses import policy_loss, value_loss
from lorarlhf.rl.rewards import RunningMoments, shape_scores
from lorarlhf.rl.schedule import is_due, prompt_rows
from lorarlhf.rl.score import Passes
from lorarlhf.training.arguments import training_arguments
from lorarlhf.training.checkpoint import RoleCheckpoints
from lorarlhf.training.progress import DisplayCallback

STATE_FILE = "ppo_state.json"
RolloutScorer = Callable[[Rollout, Sequence[PromptExample], TrunkStates | None], Tensor]


class PPOTrainer(RoleCheckpoints, Trainer):
    """Proximal policy optimisation of the policy and critic roles of one backbone.

    Optimiser, schedule, clipping, logging, checkpoints and resuming are transformers'. An iteration is: rollout,
    scores, advantages, then `num_ppo_epochs` passes over that experience in `num_mini_batches` steps each.

    Args:
        backbone: with policy, critic, and (unless it is the bare base) reference attached.
        config: the recipe's `ppo` section.
        prompts, eval_prompts: tokenised prompts to train on, and held-out ones.
        score: raw score [B] of each response of a rollout, given the trunk's states if they are known.
        folder: the stage's folder, for checkpoints, `best/` and `samples.jsonl`.
    """

    def __init__(
        self,
        backbone: SharedBackbone,
        config: PPOConfig,
        prompts: Sequence[PromptExample],
        eval_prompts: Sequence[PromptExample],
        score: RolloutScorer,
        folder: Path,
        seed: int,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.backbone = backbone
        self.config = config
        self.prompts = prompts
        self.eval_prompts = eval_prompts[: config.eval_prompts]
        self.score = score
        self.passes = Passes(backbone, config.temperature, config.token_budget)
        self.rollout_budget = TokenBudget("rollout", sys.maxsize)
        self.update_budget = TokenBudget("update", config.token_budget)
        self.folder = folder
        self.seed = seed
        self.iteration = 0
        self.iteration_ended = False
        self.kl_controller = AdaptiveKL(config.kl_coef, config.kl_target or 1.0, config.kl_horizon)
        self.moments = RunningMoments()
        self.evaluations: list[dict[str, float]] = []
        self.stats: dict[str, Any] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.update_stats: dict[str, list[float]] = defaultdict(list)
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        super().__init__(
            model=backbone,
            args=TrainingArguments(
                **training_arguments(config, folder, seed),
                max_steps=config.iterations * config.num_ppo_epochs * config.num_mini_batches,
                per_device_train_batch_size=config.batch_size // config.num_mini_batches,
                save_strategy="no",  # _IterationBorders says when
                logging_strategy="no",
                ignore_data_skip=True,  # a resumed loader starts at the right iteration by itself
            ),
            callbacks=[_IterationBorders(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        for callback in callbacks:
            if isinstance(callback, IterationDisplay):
                callback.trainer = self

    # Experience

    def get_train_dataloader(self) -> Any:
        return _ExperienceLoader(self)

    def minibatches(self) -> Iterator[dict[str, Any]]:
        """Iteration after iteration: make experience, then hand it out minibatch by minibatch."""
        while self.iteration < self.config.iterations:
            self.iteration_ended = False
            experience = self.make_experience()
            order = torch.Generator().manual_seed(self.seed + self.iteration)
            epochs = [
                torch.randperm(self.config.batch_size, generator=order).chunk(self.config.num_mini_batches)
                for _ in range(self.config.num_ppo_epochs)
            ]
            steps = [rows for epoch in epochs for rows in epoch]
            for step, rows in enumerate(steps, 1):
                yield {"experience": experience.select(rows.to(self.backbone.device)), "last": step == len(steps)}
                if self.iteration_ended:
                    break

    def make_experience(self) -> Experience:
        """Sample, score and value one batch of responses."""
        self.seconds.clear()
        self.update_stats.clear()
        config = self.config
        rows = prompt_rows(len(self.prompts), config.batch_size, self.iteration, self.seed)
        batch = [self.prompts[i] for i in rows]
        with self._timed("rollout"):
            rollout = self._sample(batch, seed=self.seed * 1_000_003 + self.iteration)
        sequences = rollout.sequences
        with self._timed("score"):
            ref_logprobs, trunk = self.passes.reference(sequences)
            scores = self.score(rollout, batch, trunk)
            shaped = shape_scores(
                scores,
                rollout.finished,
                self.moments if config.normalize_reward else None,
                config.reward_clip,
                config.missing_eos_penalty,
            )
            logprobs, entropy = rollout.logprobs, rollout.entropy
            if config.recompute_logprobs:
                logprobs, entropy = self.passes.logprobs("policy", sequences)
            values = self.passes.values(sequences, trunk)
        experience = build_experience(
            sequences,
            logprobs,
            ref_logprobs,
            values,
            shaped,
            kl_coef=self.kl_controller.value,
            kl_estimator=config.kl_estimator,
            gamma=config.gamma,
            lam=config.lam,
            whiten_rewards=config.whiten_rewards,
            trunk=trunk,
        )
        mask = experience.mask
        kl = kl_estimate(experience.logprobs, ref_logprobs, "k1")[mask].sum().item() / len(batch)
        self.stats = {
            "reward": scores.mean().item(),
            "reward_std": scores.std(correction=0).item(),
            "kl": kl,
            "kl_coef": self.kl_controller.value,
            "entropy": entropy[mask].mean().item() if mask.any() else 0.0,
            "response_length": sequences.response_lengths.float().mean().item(),
            "finished": rollout.finished.float().mean().item(),
            "rollout_gap": (logprobs - rollout.logprobs).abs().max().item(),
            "value": values[mask].mean().item() if mask.any() else 0.0,
        }
        if config.kl_target is not None:
            self.kl_controller.update(kl, len(batch))
        return experience

    def _sample(self, batch: Sequence[PromptExample], seed: int, role: Role = "policy") -> Rollout:
        self.backbone.eval()
        prompts, limit = [example.ids for example in batch], self.config.response_length
        longest = max(map(len, prompts)) + limit

        def attempt(tokens: int) -> Rollout:
            generator = torch.Generator(self.backbone.device).manual_seed(seed)
            return sample_responses(self.backbone, prompts, limit, self.config.temperature, generator, role, tokens)

        return self.rollout_budget.run(attempt, most=len(batch) * longest, least=longest)

    # Update

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One minibatch: gradients of both losses, micro-batch by micro-batch, as if it were one batch.

        Policy and critic go backward one after the other, so only one role's activations are alive.
        """
        model.train()
        minibatch: Experience = inputs["experience"]
        sequences = minibatch.sequences
        with self._timed("update"):
            totals = self.update_budget.run(
                lambda tokens: self._gradients(model, minibatch, tokens),
                most=sequences.tokens.numel(),
                least=int(sequences.lengths.max()),
            )
        for name, mean in totals.items():
            self.update_stats[name].append(mean)
        limit = self.config.early_stop_kl
        self.iteration_ended = inputs["last"] or (limit is not None and totals["approx_kl"] > limit)
        return torch.tensor(totals["loss"], device=self.args.device)

    def _gradients(self, model: nn.Module, minibatch: Experience, tokens_at_a_time: int) -> dict[str, float]:
        """Put the gradients of a minibatch into the parameters; return losses and statistics, each a mean a token."""
        model.zero_grad()  # of an attempt that ran out of memory
        tokens = minibatch.mask.sum().clamp(min=1)
        totals: dict[str, float] = defaultdict(float)
        warming_up = self.iteration < self.config.critic_warmup_iterations
        for rows in minibatch.sequences.micro_batches(tokens_at_a_time):
            micro = minibatch.select(rows)
            for part in (self.value_loss,) if warming_up else (self.policy_loss, self.value_loss):
                loss, sums = part(model, micro, tokens)
                self.accelerator.backward(loss)
                totals["loss"] += loss.item()
                for name, value in sums.items():
                    totals[name] += (value / tokens).item()
        return totals

    def policy_loss(self, model: nn.Module, micro: Experience, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate loss less the entropy bonus, over the tokens of the whole minibatch."""
        config = self.config
        logprobs, entropy = model("policy", micro.sequences, config.temperature, config.entropy_coef > 0)
        losses, clipped = policy_loss(logprobs, micro.logprobs, micro.advantages, micro.mask, config.cliprange)
        loss = (losses.sum() - config.entropy_coef * entropy.sum()) / tokens
        with torch.no_grad():  # k3 of the policy that sampled to the one now, which is never negative
            approx_kl = kl_estimate(micro.logprobs, logprobs, "k3")[micro.mask].sum()
            if not self.update_stats:  # the iteration's first minibatch: still the policy that sampled
                gap = (logprobs - micro.logprobs).abs().max().item() if micro.mask.any() else 0.0
                self.stats["rollout_gap"] = max(self.stats["rollout_gap"], gap)
        return loss, {"policy_loss": losses.sum(), "clip_fraction": clipped.sum(), "approx_kl": approx_kl}

    def value_loss(self, model: nn.Module, micro: Experience, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped squared error of the critic, times `vf_coef`."""
        values = model("critic", micro.sequences, micro.trunk)
        losses, clipped = value_loss(values, micro.values, micro.returns, micro.mask, self.config.cliprange_value)
        loss = self.config.vf_coef * losses.sum() / tokens
        return loss, {"value_loss": losses.sum(), "value_clip_fraction": clipped.sum()}

    # Logs, evaluation, checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # the trainer's row at an iteration's end
            seconds = sum(self.seconds.values())
            means = {name: sum(values) / len(values) for name, values in self.update_stats.items()}
            logs = {
                "iteration": self.iteration,
                **self.stats,
                **means,
                **logs,
                **{f"seconds_{phase}": value for phase, value in self.seconds.items()},
                "tokens_per_second": self.stats["response_length"] * self.config.batch_size / seconds,
                "peak_memory_gb": peak_memory_bytes() / 1e9,
            }
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Sample the policy on the held-out prompts; keep its adapter in `best/` if it is the best yet.

        Best is by what PPO maximises, reward less `kl_coef` x KL: reward alone would keep a policy that has found
        what fools the reward model.
        """
        batch = self.eval_prompts
        rollout = self._sample(batch, seed=self.seed)
        logprobs, _ = self.passes.logprobs("policy", rollout.sequences)
        ref_logprobs, trunk = self.passes.reference(rollout.sequences)
        scores = self.score(rollout, batch, trunk)
        reward, kl = scores.mean().item(), (logprobs - ref_logprobs).sum().item() / len(batch)
        metrics = {
            "eval_reward": reward,
            "eval_kl": kl,
            "eval_objective": reward - self.config.kl_coef * kl,
            "eval_response_length": rollout.sequences.response_lengths.float().mean().item(),
            "eval_finished": rollout.finished.float().mean().item(),
        }
        self.evaluations.append({"iteration": self.iteration, **metrics})
        if self.best is self.evaluations[-1]:
            self.backbone.save_role("policy", self.folder / "best")
        self._write_samples(rollout, scores)
        self.log({"iteration": self.iteration, **metrics})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def best(self) -> dict[str, float] | None:
        """The evaluation with the highest held-out objective, the first of equals."""
        return max(self.evaluations, key=lambda row: row["eval_objective"], default=None)

    def _write_samples(self, rollout: Rollout, scores: Tensor) -> None:
        texts = response_texts(self.backbone, rollout)
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for example, text, score in zip(self.eval_prompts, texts, scores.tolist(), strict=True):
                row = {"iteration": self.iteration, "prompt": example.prompt, "response": text, "reward": score}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        state = {
            "iteration": self.iteration,
            "kl_coef": self.kl_controller.value,
            "moments": asdict(self.moments),
            "stats": self.stats,
            "evaluations": self.evaluations,
        }
        folder = Path(output_dir or self.folder)
        (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
        if self.best:
            shutil.copytree(self.folder / "best", folder / "best", dirs_exist_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = json.loads((Path(resume_from_checkpoint) / STATE_FILE).read_text(encoding="utf-8"))
        self.iteration, self.stats, self.evaluations = state["iteration"], state["stats"], state["evaluations"]
        self.kl_controller.value = state["kl_coef"]
        self.moments = RunningMoments(**state["moments"])
        if self.best:  # a later best is not to be kept, nor the samples that came with it
            shutil.copytree(Path(resume_from_checkpoint) / "best", self.folder / "best", dirs_exist_ok=True)
            path = self.folder / "samples.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["iteration"] <= self.iteration]
            path.write_text("".join(kept), encoding="utf-8")

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - start


class _ExperienceLoader:
    """What the Trainer takes for a data loader."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.trainer.minibatches()


class IterationDisplay(DisplayCallback):
    """Counts iterations rather than steps."""

    trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.display.begin(self.trainer.config.iterations, self.trainer.iteration)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The rows say when an iteration has ended."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, {k: v for k, v in (logs or {}).items() if k != "epoch"}, **kwargs)


class _IterationBorders(TrainerCallback):
    """Log, evaluate and save between iterations only, and stop after the last."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, config = self.trainer, self.trainer.config
        if not trainer.iteration_ended:
            return
        trainer.iteration += 1
        is_last = trainer.iteration == config.iterations
        control.should_log = True
        control.should_evaluate = is_due(trainer.iteration, config.eval_every, is_last)
        control.should_save = is_due(trainer.iteration, config.save_every, is_last)
        control.should_training_stop = is_last

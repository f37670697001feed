"""One iteration of both engines on the same weights and responses, in a process that has TRL 1.12.

    python both_engines.py FOLDER [CASE ...]

writes `FOLDER/CASE.safetensors` for every case: what each engine computed, as `ours.NAME` and `trl.NAME`. Nothing of
TRL's is typed again here: its numbers are the local variables of its own `train`, read where that calls something of
its module.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from demo_runs import small_recipe
from safetensors.torch import save_file
from torch import Tensor
from trl.experimental import ppo as trl
from trl.experimental.ppo import ppo_trainer

import lorarlhf.rl.loop as our_module
import lorarlhf.rl.update as update_module
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.tokenized import prompt_examples
from lorarlhf.generation.sample import Rollout
from lorarlhf.recipe.sections import PPOConfig, Role
from lorarlhf.rl.algorithms import make_algorithm
from lorarlhf.rl.kl import kl_estimate
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.loop import LoopParts
from lorarlhf.rl.process_group import ProcessGroup
from lorarlhf.rl.state import TrainingState
from lorarlhf.rl.trl_engine import trl_trainer
from lorarlhf.stages.ppo import make_parts

ROLES: tuple[Role, ...] = ("policy", "reference", "reward", "critic")
TRAINED: tuple[Role, ...] = ("policy", "critic")
Arguments = tuple[LoopParts, PPOConfig, TrainingState, Learner]
EXPERIENCE = ("scores", "logprobs", "ref_logprobs", "kl", "values", "advantages", "returns")


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings that differ from `BASE`.

    Attributes:
        sets: of the recipe.
        biased: let TRL's `masked_var` take its own option `unbiased=False`, as our whitening does.
        trl_config: arguments of TRL's PPOConfig that the engine does not choose.
        pad_at: a response token, counted from 0, that is made the pad token in the first row.
        own_loader: let TRL draw the prompts with its own data loader; only the steps can then be compared.
    """

    sets: tuple[str, ...] = ()
    biased: bool = True
    trl_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    pad_at: int | None = None
    own_loader: bool = False


BASE = (
    *("ppo.iterations=1", "ppo.num_mini_batches=1", "ppo.eval_every=0", "ppo.save_every=0"),
    *("ppo.max_grad_norm=1e6", "ppo.missing_eos_penalty=0.5", "ppo.temperature=1.0"),
    *("ppo.gamma=0.98", "ppo.lam=0.9", "ppo.kl_coef=0.3", "ppo.vf_coef=0.7"),
    *("ppo.cliprange=0.02", "ppo.cliprange_value=0.02"),
    *("ppo.optim=sgd", "ppo.learning_rate=0.1", "model.quantization=none"),
    "ppo.response_length=6",  # none of the demo's answers is that short: nothing ends
)
ENDS = ("ppo.response_length=20",)  # most answers end, at different lengths, and some are cut
MICRO = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
CASES = {
    "same": Case(),
    "adamw": Case(("ppo.optim=adamw_torch", "ppo.learning_rate=1e-3")),
    "nf4": Case(("model.quantization=nf4",)),
    "k3": Case(("ppo.kl_estimator=k3",)),
    "whiten_rewards": Case(("ppo.whiten_rewards=true",)),
    "checkpointing": Case(("ppo.gradient_checkpointing=true",)),
    "steps": Case(("ppo.num_ppo_epochs=2", "ppo.num_mini_batches=2")),
    "temperature": Case(("ppo.temperature=0.7",)),
    "bessel": Case(biased=False),
    "ends": Case(ENDS),
    "ends_undiscounted": Case((*ENDS, "ppo.gamma=1.0", "ppo.lam=1.0")),
    "micro_batches": Case(trl_config=MICRO),
    "micro_batches_end": Case(ENDS, trl_config=MICRO),
    "accumulated": Case(("ppo.num_mini_batches=2",), trl_config=MICRO),
    "accumulated_last_batch": Case(("ppo.num_mini_batches=2",), trl_config=MICRO, own_loader=True),
    "pad_in_response": Case(pad_at=2),
    "bfloat16": Case(("model.compute_dtype=bfloat16",)),
}


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or CASES:
        results = both(CASES[name], folder / name)
        save_file({k: v.detach().clone().contiguous() for k, v in results.items()}, folder / f"{name}.safetensors")


def both(case: Case, folder: Path) -> dict[str, Tensor]:
    recipe = small_recipe(folder, *BASE, *case.sets)
    torch.manual_seed(1)
    backbone = load_backbone(recipe.model)
    for role in ROLES:  # each does something, and each something else
        backbone.attach(role, recipe.lora.for_role("policy"))
        with torch.no_grad():
            for parameter in backbone.role_parameters(role):
                parameter.add_(0.03 * torch.randn_like(parameter))
    backbone.train_roles(*TRAINED)
    start = [p.detach().clone() for p in parameters(backbone)]
    prompts = prompt_examples(recipe.data, backbone.tokenizer, "train")[: recipe.ppo.batch_size]

    def fresh() -> Arguments:
        learner = Learner(backbone, recipe.ppo, TRAINED, folder, ProcessGroup(backbone.device))
        parts = make_parts(backbone, recipe.ppo, prompts, [], [], lambda row: None, folder, recipe.seed)
        return parts, recipe.ppo, TrainingState(recipe.ppo.kl_coef), learner

    seen, ours = run_ours(*fresh(), case)
    with torch.no_grad():
        for parameter, value in zip(parameters(backbone), start, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    theirs = run_trl(*fresh(), case, seen)
    results = {f"ours.{k}": v for k, v in ours.items()} | {f"trl.{k}": v for k, v in theirs.items()}
    return results | {"mask": seen.rollout.sequences.response_mask, "finished": seen.rollout.finished}


def parameters(backbone: SharedBackbone) -> Iterator[torch.nn.Parameter]:
    return (p for role in TRAINED for p in backbone.role_parameters(role))


def flat(backbone: SharedBackbone, of: str) -> dict[str, Tensor]:
    """`{of}_policy` and `{of}_critic`: all numbers of a role's tensors, or of their gradients, as one."""
    return {
        f"{of}_{role}": torch.cat(
            [(p.grad if of == "grad" else p.detach()).flatten() for p in backbone.role_parameters(role)]
        )
        for role in TRAINED
    }


# Ours


@dataclasses.dataclass
class Seen:
    """What our engine drew, for TRL's to draw the same."""

    prompts: list[list[int]]
    rollout: Rollout
    orders: list[Tensor]


def run_ours(
    parts: LoopParts, config: PPOConfig, state: TrainingState, learner: Learner, case: Case
) -> tuple[Seen, dict[str, Tensor]]:
    results: dict[str, Tensor] = {}
    seen: list[Seen] = []
    orders: list[Tensor] = []
    steps: list[dict[str, Tensor]] = []
    algorithm = make_algorithm(config)
    sample, score, shuffle, step = parts.sampler.sample, our_module.score, torch.randperm, learner.step
    estimate = algorithm.experience

    def sample_and_edit(*args: Any, **kwargs: Any) -> Rollout:
        rollout = sample(*args, **kwargs)
        if case.pad_at is not None:
            sequences = rollout.sequences
            sequences.tokens[0, sequences.prompt_lengths[0] + case.pad_at] = learner.backbone.tokenizer.pad_token_id
        return rollout

    def score_and_keep(passes: Any, rollout: Rollout, prompts: Any, *args: Any) -> Any:
        seen.append(Seen([example.ids for example in prompts], rollout, orders))
        return score(passes, rollout, prompts, *args)

    def experience_and_keep(scored: Any, scores: Tensor, kl_coef: float) -> Any:
        made = estimate(scored, scores, kl_coef)
        kl = kl_estimate(scored.logprobs, scored.ref_logprobs, config.kl_estimator)
        results.update(scores=scores, kl=torch.where(scored.mask, kl, 0.0))
        results.update({name: getattr(scored, name) for name in ("logprobs", "ref_logprobs", "values")})
        results.update(returns=made.returns, advantages=made.returns - made.values, whitened=made.advantages)
        return made

    def shuffle_and_keep(*args: Any, **kwargs: Any) -> Tensor:
        orders.append(shuffle(*args, **kwargs))
        return orders[-1]

    def step_and_keep(roles: Any) -> Any:
        steps.append(flat(learner.backbone, "grad"))
        return step(roles)

    losses: dict[str, list[float]] = {"policy_loss": [], "value_loss": [], "approx_kl": []}
    gradients = update_module.minibatch_gradients

    def gradients_and_keep(learner: Learner, algorithm: Any, minibatch: Any, tokens: Tensor, *args: Any) -> Any:
        sums, gap = gradients(learner, algorithm, minibatch, tokens, *args)
        for name, values in losses.items():
            values.append((sums[name] / tokens).item())
        return sums, gap

    with (
        patch.object(parts.sampler, "sample", sample_and_edit),
        patch.object(algorithm, "experience", experience_and_keep),
        patch.object(learner, "step", step_and_keep),
        patch.object(our_module, "score", score_and_keep),
        patch.object(update_module, "minibatch_gradients", gradients_and_keep),
        patch("torch.randperm", shuffle_and_keep),
    ):
        if config.gradient_checkpointing:
            learner.backbone.enable_gradient_checkpointing()
        our_module.train(parts, algorithm, config, state, learner)
    results |= {name: torch.tensor(values) for name, values in losses.items()}
    return seen[0], results | steps[0] | flat(learner.backbone, "after") | {"steps": torch.tensor(len(steps))}


# TRL's


def run_trl(
    parts: LoopParts, config: PPOConfig, state: TrainingState, learner: Learner, case: Case, seen: Seen
) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    losses: dict[str, list[Tensor]] = {"pg_loss": [], "vf_loss": [], "ratio": []}
    steps: list[dict[str, Tensor]] = []
    whiten, variance = ppo_trainer.masked_whiten, ppo_trainer.masked_var

    def whiten_and_keep(*args: Any, **kwargs: Any) -> Tensor:
        made = whiten(*args, **kwargs)
        results.update({name: x.clone() for name, x in callers_variables().items() if name in EXPERIENCE})
        results["whitened"] = made.clone()  # rewards' first if they are whitened, then advantages'
        return made

    def backward_and_keep(loss: Tensor) -> None:
        known = callers_variables()
        for name, values in losses.items():
            values.append(known[name].detach().float().clone())
        backward(loss)

    def step_and_keep(*args: Any, **kwargs: Any) -> Any:
        steps.append(flat(learner.backbone, "grad"))
        return step(*args, **kwargs)

    with patch.object(trl, "PPOConfig", functools.partial(with_changes, trl.PPOConfig, case.trl_config)):
        trainer = trl_trainer(parts, config, state, learner)
    backward, step = trainer.accelerator.backward, trainer.optimizer.optimizer.step
    trainer.accelerator.backward, trainer.optimizer.optimizer.step = backward_and_keep, step_and_keep
    if not case.own_loader:
        trainer.dataloader = [trainer.data_collator([{"input_ids": ids} for ids in seen.prompts])]
    with (
        patch.multiple(
            ppo_trainer,
            masked_whiten=whiten_and_keep,
            masked_var=functools.partial(variance, unbiased=False) if case.biased else variance,
        ),
        patch("torch.multinomial", our_responses(seen.rollout)),
        patch("numpy.random.permutation", our_orders(seen.orders)),
    ):
        trainer.train()
    results["policy_loss"], results["value_loss"] = torch.stack(losses["pg_loss"]), torch.stack(losses["vf_loss"])
    results["first_ratio"] = losses["ratio"][0]
    return results | steps[0] | flat(learner.backbone, "after") | {"steps": torch.tensor(len(steps))}


def callers_variables() -> dict[str, Any]:
    """Of the function that called the one that asks."""
    return inspect.currentframe().f_back.f_back.f_locals


def with_changes(config: Any, changes: dict[str, Any], **arguments: Any) -> Any:
    return config(**arguments | changes)


def our_responses(rollout: Rollout) -> Any:
    """Dice for TRL's sampling that fall as ours did."""
    sequences = rollout.sequences
    spans = zip(sequences.tokens.tolist(), sequences.prompt_lengths.tolist(), sequences.lengths.tolist(), strict=True)
    rows = [torch.tensor(tokens[start:end]) for tokens, start, end in spans]
    columns = iter(torch.nn.utils.rnn.pad_sequence(rows).unsqueeze(-1))  # nobody looks at what comes after a row's end
    return lambda probabilities, num_samples: next(columns)


def our_orders(orders: list[Tensor]) -> Any:
    """Minibatches for TRL made up as ours were."""
    remaining = iter(orders)
    return lambda n: next(remaining).numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

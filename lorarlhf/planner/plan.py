"""The planner: what memory each stage of a recipe takes, from the model's config alone.

Passes are run on shadows of the model (`lorarlhf.planner.shadow`) with a few layers each, and what they allocate is
extrapolated: every further layer adds the same.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lorarlhf.backbone.budget import tokens_a_pass
from lorarlhf.errors import UserError, first_line
from lorarlhf.memory import CUDA_CONTEXT
from lorarlhf.planner import shadow_steps
from lorarlhf.planner.shadow import Allocations, ShadowBackbone, shadow_model, stored_bytes
from lorarlhf.recipe.sections import Recipe, Role, ScalarLoraOverride, Stage, SupervisedConfig, TrainingConfig
from lorarlhf.recipe.stages import STAGES
from lorarlhf.rl.algorithms import ALGORITHMS
from lorarlhf.training.arguments import has_router_loss
from lorarlhf.training.objectives import OBJECTIVES

Target = Literal["cuda", "cpu"]
# Resident memory of a Linux process that has imported everything and trained a model of no size: measured.
LIBRARIES = 720_000_000
# A CPU's heap keeps holes between what is freed and what is allocated next: measured, of what comes and goes in each
# phase, as one leaves holes that the next has other sizes for. Scores over a vocabulary are no exception: glibc maps
# blocks of more than 32 MiB by themselves, and theirs are of 16.
HEAP_HOLES = 0.45
LAYERS_RUN = (2, 4)  # of the shadows: two points give the line that every further layer goes on along
SHADOW_ROLES: tuple[Role, ...] = ("policy", "reward", "critic")  # the reference is of the policy's shape


@dataclass(frozen=True)
class Phase:
    """A part of a stage, and what its peak consists of: bytes by kind."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class StagePlan:
    """The memory of one stage.

    Attributes:
        phases: in the order they run.
        token_budget: of a micro-batch of ppo, None for the other stages.
        rollout_rows: responses decoded at a time in ppo.
    """

    stage: Stage
    phases: list[Phase]
    token_budget: int | None = None
    rollout_rows: int | None = None

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def allocated(self) -> int:
        """What `peak_memory_bytes` would report: torch does not count the GPU's context."""
        return self.peak.total - self.peak.parts.get("context", 0)


class CannotPlanError(UserError):
    """A pass of this model cannot be run without weights."""


class Planner:
    """Plans stages of one recipe.

    Args:
        recipe: `model.name` is not read, only `model_config`.
        target: what the stages will run on.
        reference: whether PPO's reference has an adapter, because `sft` has run.
    """

    def __init__(self, recipe: Recipe, model_config: PreTrainedConfig, target: Target, reference: bool = True) -> None:
        self.recipe = recipe
        self.model_config = model_config
        self.target = target
        self.reference = reference
        text = model_config.get_text_config()
        self.layers, self.hidden = text.num_hidden_layers, text.hidden_size
        self.weights = stored_bytes(shadow_model(recipe.model, model_config, target), recipe.model)
        self.runs: dict[tuple[Any, ...], Counter[str]] = {}

    @property
    def sequence_length(self) -> int:
        """Tokens of ppo's longest sequence."""
        return self.recipe.data.max_prompt_length + self.recipe.ppo.response_length

    def smallest(self, stage: Stage) -> StagePlan:
        """The stage with one sequence (or pair) at a time."""
        if STAGES[stage].samples:
            return self.ppo(token_budget=1, rollout_rows=1)
        config: SupervisedConfig = getattr(self.recipe, stage)
        return self.supervised(stage, config.model_copy(update={"per_device_train_batch_size": 1}), evaluation=False)

    # Stages

    def supervised(self, stage: Stage, config: SupervisedConfig | None = None, evaluation: bool = True) -> StagePlan:
        """sft or reward."""
        config = config or getattr(self.recipe, stage)
        length = self.recipe.data.max_length
        role = STAGES[stage].role
        layers = self._role_layers(role)
        scores = STAGES[stage].scores
        sequences = len(OBJECTIVES[self.recipe.reward.objective].sequences) if scores else 1
        rows, tokens = config.per_device_train_batch_size, tokens_a_pass(torch.device(self.target))
        of_pass = min(rows, max(1, tokens // (sequences * length)))
        if not scores and has_router_loss(self.model_config):  # TRL computes a batch at once
            of_pass = rows
        again = config.gradient_accumulation_steps > 1 or of_pass < rows
        resident = {**self._weights(), **self._adapters([role], config)}
        of_stage = shadow_steps.reward_step if scores else shadow_steps.sft_step
        step = functools.partial(of_stage, rows=of_pass * sequences, length=length, again=again)
        training = self._run(step, layers, config.gradient_checkpointing, padded=True)
        phases = [self._phase("training", resident, training)]
        if evaluation:
            evaluated = max(1, tokens // length)
            work = functools.partial(shadow_steps.reward_scores, rows=evaluated, length=length)
            if not scores:
                evaluated = min(config.per_device_eval_batch_size, evaluated)
                work = functools.partial(shadow_steps.sft_loss, rows=evaluated, length=length)
            evaluating = self._run(work, layers, padded=not scores)
            phases.append(self._phase("evaluation", resident, evaluating, beside=training))
        return StagePlan(stage, phases)

    def ppo(self, token_budget: int, rollout_rows: int | None = None) -> StagePlan:
        """ppo with this many tokens a micro-batch; `rollout_rows` responses decoded at a time, None for all."""
        config, length = self.recipe.ppo, self.sequence_length
        prompt, response = self.recipe.data.max_prompt_length, config.response_length
        batch, minibatch = config.batch_size, config.batch_size // config.num_mini_batches
        evaluated = self.recipe.prompts_evaluated
        decoded = max(batch, evaluated)
        decoded = min(decoded, rollout_rows or decoded)
        scored = min(max(batch, evaluated), max(1, token_budget // length))
        updated = min(minibatch, max(1, token_budget // length))
        has_critic = ALGORITHMS[config.advantage_estimator].has_critic
        trained: list[Role] = ["policy", "critic"] if has_critic else ["policy"]
        resident = {**self._weights(), **self._adapters(trained, config, self._frozen_roles())}
        critic_layers = self._role_layers("critic") if has_critic else 0
        states = 0
        if max(critic_layers, self._role_layers("reward")) < self.layers:
            states = length * self.hidden * self._element_size

        decode = functools.partial(shadow_steps.decode, rows=decoded, prompt=prompt, response=response)
        rollout = self._run(decode, self.layers, padded=True)
        score = functools.partial(shadow_steps.score, rows=scored, prompt=prompt, response=response)
        scoring = self._run(score, self.layers)
        scored_states = {"trunk states": states * (max(batch, evaluated) + scored)}

        again = updated < minibatch  # then gradients of the micro-batch before are there already
        micro: dict[str, Any] = {"rows": updated, "prompt": prompt, "response": response, "again": again}
        policy = functools.partial(shadow_steps.policy_step, **micro, entropy=config.entropy_coef > 0)
        updating = self._run(policy, self.layers, config.gradient_checkpointing)
        kept_states = {"trunk states": 0}
        if has_critic:  # policy and critic take turns; each has its gradients there while the other computes
            critic = functools.partial(shadow_steps.critic_step, **micro)
            of_critic = self._run(critic, critic_layers, config.gradient_checkpointing)
            of_critic = of_critic + Counter({"gradients": self._trained_bytes("policy")})
            if again:
                updating = updating + Counter({"gradients": self._trained_bytes("critic")})
            updating = max(updating, of_critic, key=Counter.total)
            kept_states = {"trunk states": states * (batch + minibatch + updated)}  # what the critic goes on from
        return StagePlan(
            "ppo",
            [
                self._phase("rollout", resident, rollout, beside=scoring + updating),
                self._phase("scoring", resident | scored_states, scoring, beside=rollout + updating),
                self._phase("update", resident | kept_states, updating, beside=rollout + scoring),
            ],
            token_budget,
            decoded,
        )

    def rollout_that_fits(self, capacity: int, token_budget: int) -> StagePlan:
        """The ppo plan after what `TokenBudget` does when a rollout runs out of memory: half, and half again."""
        plan = self.ppo(token_budget)
        rows = plan.rollout_rows or 1
        while plan.phases[0].total > capacity and rows > 1:
            rows = max(1, rows // 2)
            plan = self.ppo(token_budget, rows)
        return plan

    def largest_budget(self, capacity: int) -> int:
        """The most tokens a micro-batch of ppo with which scoring and update fit; 0 if not even one sequence does."""
        config, length = self.recipe.ppo, self.sequence_length

        def total(rows: int) -> int:
            return max(phase.total for phase in self.ppo(rows * length, 1).phases[1:])

        least, most = 1, max(config.batch_size, self.recipe.prompts_evaluated)
        low, high = total(least), total(most)
        if high <= capacity:
            return most * length
        if low > capacity:
            return 0
        while most - least > 1:  # memory grows nearly in line with the rows
            guess = least + int((capacity - low) / (high - low) * (most - least))
            rows = min(max(guess, least + 1), most - 1)
            size = total(rows)
            if size <= capacity:
                least, low = rows, size
            else:
                most, high = rows, size
        return least * length

    # Parts

    def _phase(
        self, name: str, resident: dict[str, int], work: Counter[str], beside: Counter[str] | None = None
    ) -> Phase:
        """A phase's peak. What came and went in other phases, `beside`, has left its holes in a CPU's heap."""
        parts = resident | {kind: work[kind] + resident.get(kind, 0) for kind in work}
        if self.target == "cuda":
            parts["context"] = CUDA_CONTEXT
        else:
            parts["libraries"] = LIBRARIES
            parts["heap"] = int(HEAP_HOLES * (work + (beside or Counter())).total())
        return Phase(name, {kind: size for kind, size in parts.items() if size})

    def _weights(self) -> dict[str, int]:
        return {"backbone": sum(self.weights.values())}

    @property
    def _element_size(self) -> int:
        return self._shadows[0].compute_dtype.itemsize

    def _role_layers(self, role: Role) -> int:
        """How many layers a role adapts. PPO's critic begins as the reward model unless the recipe shapes it."""
        if role == "critic" and self.recipe.lora.critic == ScalarLoraOverride():
            role = "reward"
        return self.recipe.lora.for_role(role).layer_count(self.layers)  # type: ignore[arg-type]

    def _adapters(self, trained: list[Role], config: TrainingConfig, frozen: Sequence[Role] = ()) -> dict[str, int]:
        roles = [*trained, *frozen]
        state = functools.partial(_optimizer_bytes, config.optim)
        return {
            "adapters": sum(self._per_parameter(role, lambda p: p.numel() * p.element_size()) for role in roles),
            "optimizer": sum(self._per_parameter(role, state) for role in trained),
        }

    def _frozen_roles(self) -> list[Role]:
        """Whose adapters lie beside those that ppo trains."""
        roles: list[Role] = ["reward"] if self.recipe.ppo.reward_model_weight != 0 else []
        return [*roles, "reference"] if self.reference else roles

    def _trained_bytes(self, role: Role) -> int:
        return self._per_parameter(role, lambda p: 4 * p.numel())

    def _per_parameter(self, role: Role, size: Callable[[Tensor], int]) -> int:
        shadow_role: Role = "policy" if role == "reference" else role
        sums = [sum(map(size, parameters)) for parameters in self._role_parameters[shadow_role]]
        return round(_extrapolate([len(s.layers) for s in self._shadows], sums, self._role_layers(shadow_role)))

    # Passes

    @functools.cached_property
    def _shadows(self) -> list[ShadowBackbone]:
        """Small ones, with every role on all their layers."""
        counts = LAYERS_RUN if self.layers > LAYERS_RUN[-1] else sorted({1, self.layers})
        return [self._shadow(count) for count in counts]

    @functools.cached_property
    def _role_parameters(self) -> dict[str, list[list[Tensor]]]:
        """Of each role, on each shadow: looked for once, as every plan asks for the sizes of all."""
        return {role: [list(shadow.role_parameters(role)) for shadow in self._shadows] for role in SHADOW_ROLES}

    @functools.cached_property
    def _checkpointed(self) -> list[ShadowBackbone]:
        shadows = [self._shadow(len(shadow.layers)) for shadow in self._shadows]
        for shadow in shadows:
            shadow.enable_gradient_checkpointing()
        return shadows

    def _shadow(self, layers: int) -> ShadowBackbone:
        shadow = ShadowBackbone(self.recipe.model, self.model_config, self.target, layers)
        for role in SHADOW_ROLES:
            shaped_as = "reward" if role == "critic" and self.recipe.lora.critic == ScalarLoraOverride() else role
            shape = self.recipe.lora.for_role(shaped_as)  # type: ignore[arg-type]
            shadow.attach(role, shape.model_copy(update={"top_layers": 1.0}))
        shadow.train_roles(*SHADOW_ROLES)
        return shadow

    def _run(
        self, work: Callable[..., None], layers: int, checkpointing: bool = False, padded: bool = False
    ) -> Counter[str]:
        """Peak of what `work(shadow, allocations)` allocates on a model of so many layers."""
        key = (work.func, tuple(work.keywords.items()), layers, checkpointing)  # type: ignore[attr-defined]
        if key not in self.runs:
            shadows = self._checkpointed if checkpointing else self._shadows
            try:
                peaks = [_peak(shadow, work, padded) for shadow in shadows]
            except RuntimeError as error:  # an operation whose result depends on data
                raise CannotPlanError(
                    f"model.name: {self.recipe.model.name} cannot be planned: {first_line(error)}"
                ) from error
            self.runs[key] = Counter(
                {
                    kind: round(_extrapolate([len(s.layers) for s in shadows], [p[kind] for p in peaks], layers))
                    for kind in sorted(set().union(*peaks))
                }
            )
        return self.runs[key]


def _peak(shadow: ShadowBackbone, work: Callable[..., None], padded: bool) -> Counter[str]:
    vocabulary = shadow.causal_lm.get_output_embeddings().out_features
    with Allocations([*shadow.parameters(), *shadow.buffers()], vocabulary, padded) as allocations:
        work(shadow, allocations)
    shadow.zero_grad()
    return allocations.peak


def _extrapolate(counts: list[int], values: list[int], count: int) -> float:
    """The line through two points, read at `count`; or the one point there is."""
    if len(counts) == 1:
        return values[0]
    slope = (values[1] - values[0]) / (counts[1] - counts[0])
    return max(0.0, values[1] + slope * (count - counts[1]))


def _optimizer_bytes(optim: str, parameter: Tensor) -> int:
    """Of an optimiser's state for one tensor: Adam's two numbers a weight, of 4 bytes, or of 1 by bitsandbytes."""
    numbers = 0 if optim.startswith(("sgd", "adafactor")) else 1 if "lion" in optim else 2
    count = parameter.numel()
    if "8bit" in optim and count >= 4096:  # smaller tensors it keeps in 32 bits
        return numbers * (count + 4 * math.ceil(count / 256))
    return 4 * numbers * count

"""Reinforcement learning of the policy."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from lorarlhf.recipe.sections.section import (
    Fraction,
    FunctionName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from lorarlhf.recipe.sections.training import Schedule, TrainingConfig


class WeightedFunction(Section):
    """A Python function `f(prompts, responses) -> list[float]`, added to the reward with a weight."""

    function: FunctionName
    """The function, as `module:function`; the module may lie in the folder you run from."""

    weight: float = 1.0
    """What its numbers are multiplied by before they are added to the reward; negative ones are a penalty."""

    @classmethod
    def of(cls, entry: str | WeightedFunction) -> WeightedFunction:
        """An entry of `ppo.reward_functions`, which may be a name alone."""
        return cls(function=entry) if isinstance(entry, str) else entry


class StopWhen(Section):
    """When ppo ends before its last iteration; a rule left out never does."""

    kl: PositiveFloat | None = None
    """End when the mean KL of an iteration is more than so many nats a response; 10 to 20 usually means that the reward
    model is being exploited."""

    held_out_worse: PositiveInt | None = None
    """End when so many evaluations in a row were worse than the best one."""


class PPOConfig(TrainingConfig):
    """Reinforcement learning of the policy. Names follow TRL's PPOConfig; rates are scheduled by iteration.

    `advantage_estimator` is the algorithm: `gae` is PPO with a critic (Schulman et al. 2017; Ziegler et al. 2019);
    `rloo` (Ahmadian et al. 2024) and `grpo` (Shao et al. 2024) compare responses to one prompt and have no critic.
    """

    learning_rate: PositiveFloat = 1e-5
    """The optimiser's highest rate. Raise it where reward stands still and `clip_fraction` is near 0, lower it where
    the KL explodes."""

    lr_scheduler_type: Schedule = "constant"
    """How the rate goes on over the iterations: `linear` and `cosine` fall to 0 at the last, the others stay."""

    # Algorithm
    advantage_estimator: Literal["gae", "rloo", "grpo"] = "gae"
    """The algorithm: `gae` is PPO with a critic; `rloo` and `grpo` compare several responses to a prompt and need no
    critic, so less memory. `grpo` or `rloo` for rules that are right or wrong."""

    num_generations: PositiveInt | None = None
    """Responses to each prompt; null is 1 for `gae`, 4 for `rloo` and `grpo`, which need 2 or more. Raise it where all
    responses to a prompt tend to score the same."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What `grpo` divides advantages by: the standard deviation of the responses to a prompt (`group`), of the whole
    `batch`, or nothing (`none`, Dr. GRPO)."""

    # Rollouts; `batch_size` counts responses
    iterations: PositiveInt = 200
    """How many times responses are sampled and learnt from: the length of the run. Time goes in line with it."""

    batch_size: PositiveInt = 64
    """Responses in an iteration, over all processes. Larger is calmer and slower; a multiple of `num_mini_batches` and
    of the responses to a prompt."""

    response_length: PositiveInt = 128
    """The most tokens of a response; a longer one is cut off. Raise it where many do not end (`finished` well below 1);
    memory and time follow it."""

    temperature: PositiveFloat = 1.0
    """Temperature of sampling, and of the log-probabilities that are learnt from. 1 explores as the model itself would;
    lower is more careful."""

    recompute_logprobs: bool | Literal["auto"] = "auto"
    """Whether the log-probabilities of what was sampled are computed once more, as the update does it, so that ratios
    start at 1. false saves a pass; `rollout_gap` then says what that costs. `auto` does without in float32, where it
    is rounding of 1e-5."""

    # Optimisation
    num_ppo_epochs: PositiveInt = 4
    """Passes through the responses of an iteration. More learn more from each and from older samples; lower it where
    `clip_fraction` is high."""

    num_mini_batches: PositiveInt = 4
    """Parts that the responses are split into in each pass, with a step of the optimiser after each."""

    micro_batch_tokens: PositiveInt | Literal["auto"] = 4096
    """Tokens computed at a time in scoring and update: changes memory and speed alone. `auto` takes what fits nine
    tenths of the free memory of a GPU (512 on a CPU)."""

    cliprange: PositiveFloat = 0.2
    """How far the ratio of new to old probability of a token may go from 1 before it stops to count."""

    cliprange_value: PositiveFloat = 0.2
    """How far the critic's value of a token may move in an update before it stops to count; `gae` only."""

    vf_coef: NonNegativeFloat = 0.1
    """Weight of the critic's loss; `gae` only. As policy and critic share no weights it changes only how soon
    `max_grad_norm` clips the critic."""

    entropy_coef: NonNegativeFloat = 0.0
    """Weight of a bonus for entropy, a token. Some thousandths keep a policy from always giving the same answer."""

    gamma: Fraction = 1.0
    """Discount a token of what comes later; `gae` only. 1 counts all alike, as is usual for text."""

    lam: Fraction = 0.95
    """Lambda of GAE; `gae` only. Lower trusts the critic more (less noise, more bias), 1 trusts the rewards alone."""

    whiten_rewards: bool = False
    """Whether the rewards of tokens are scaled to a standard deviation of 1 in each batch; `gae` only."""

    critic_warmup_iterations: NonNegativeInt = 0
    """Iterations at the start in which the critic learns and the policy stays as it is; `gae` only. Some help, as a new
    critic knows nothing."""

    critic_learning_rate: PositiveFloat | None = None
    """The critic's rate; `gae` only; null takes `learning_rate`. Raise it where `value_loss` stays high."""

    early_stop_kl: PositiveFloat | None = None
    """Ends the update of an iteration once the policy has moved by so many nats a token; null never does. 0.005 to 0.02
    holds a rate that is too high."""

    # KL to the reference
    kl_coef: NonNegativeFloat = 0.05
    """Price of leaving the reference, in reward a nat. Raise it where reward rises and samples get worse; 0 leaves
    nothing to hold the policy."""

    kl_estimator: Literal["k1", "k3"] = "k1"
    """How the KL in the reward is estimated: `k1` is the plain difference of log-probabilities, `k3` has less noise and
    is never negative."""

    kl_in: Literal["reward", "loss"] | None = None
    """Where the price of KL is paid: in the `reward`, or in the `loss` (as k3); null is the loss for `grpo`, else the
    reward."""

    kl_target: PositiveFloat | None = None
    """KL in nats a response to hold: `kl_coef` then rises while the KL is above and falls while it is below. null keeps
    `kl_coef` as it is."""

    kl_horizon: PositiveInt = 10_000
    """With `kl_target`, how many responses it takes to correct `kl_coef` by a fifth; fewer is quicker."""

    # Reward
    reward_functions: list[FunctionName | WeightedFunction] = []
    """Python functions that score responses, beside the reward model or instead of it: `module:function`, or {function:
    "module:function", weight: 2.0}."""

    reward_model_weight: float = 1.0
    """What the reward model's score is multiplied by; 0 where `reward_functions` are to be the whole reward."""

    normalize_reward: bool = False
    """Whether scores are shifted and scaled by mean and standard deviation of all scores so far. For rewards of very
    different size."""

    reward_clip: PositiveFloat | None = None
    """Scores beyond this, either way, are cut to it, after normalisation; null cuts none."""

    missing_eos_penalty: NonNegativeFloat | None = None
    """What a response that was cut off at `response_length` loses of its score; null is none. It teaches to be brief,
    and nothing else where nearly all are cut off."""

    reward_timeout: PositiveFloat | None = None
    """Seconds that a reward function may take for a batch; longer ends the run with an error, null waits for it."""

    # Evaluation and checkpoints, in iterations
    eval_every: NonNegativeInt = 20
    """Iterations between two evaluations on held-out prompts, by which the best policy is chosen; 0 makes none and
    keeps the last policy."""

    eval_prompts: PositiveInt = 64
    """The most held-out prompts that an evaluation answers. More tell smaller differences and take longer."""

    save_every: NonNegativeInt = 20
    """Iterations between two checkpoints, which `--resume` goes on from; 0 writes none."""

    stop_when: StopWhen | None = None
    """Rules that end the run before `iterations` have passed; null has none."""

    on_nan: Literal["stop", "skip"] = "stop"
    """What NaN or infinity in scores, log-probabilities or gradients does: `stop` ends the run before the weights
    change; `skip` leaves out that step, or the iteration's update, and counts it."""

    @property
    def token_budget(self) -> int:
        """`micro_batch_tokens`, which the stage has put a number in if it was "auto"."""
        assert self.micro_batch_tokens != "auto"
        return self.micro_batch_tokens

    @property
    def algorithm(self) -> str:
        """What the literature calls it."""
        return "PPO" if self.advantage_estimator == "gae" else self.advantage_estimator.upper()

    @property
    def generations(self) -> int:
        """`num_generations`, or how many responses to a prompt the algorithm asks for by itself."""
        return self.num_generations or (1 if self.advantage_estimator == "gae" else 4)

    @property
    def critic_only_iterations(self) -> int:
        """How many iterations, at the start, leave the policy as it was; none where there is no critic to warm up."""
        return self.critic_warmup_iterations if self.advantage_estimator == "gae" else 0

    @property
    def kl_is_in_loss(self) -> bool:
        """Where the KL penalty goes: into the reward, but for GRPO, unless `kl_in` says."""
        return self.kl_in == "loss" or (self.kl_in is None and self.advantage_estimator == "grpo")

    @model_validator(mode="after")
    def _generations(self) -> PPOConfig:
        if self.advantage_estimator != "gae" and self.generations < 2:
            raise ValueError(
                f"num_generations must be at least 2: {self.advantage_estimator} compares responses to one prompt"
            )
        if self.batch_size % self.generations:
            raise ValueError(
                f"batch_size {self.batch_size} counts responses: it must be a multiple of num_generations "
                f"{self.generations}"
            )
        return self

    @model_validator(mode="after")
    def _batches(self) -> PPOConfig:
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_mini_batches {self.num_mini_batches}"
            )
        if self.batch_size > self.kl_horizon:
            raise ValueError(f"kl_horizon {self.kl_horizon} must be at least batch_size {self.batch_size}")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target adapts kl_coef by factors, which leave 0 at 0; begin with a kl_coef above 0")
        return self

    @model_validator(mode="after")
    def _iterations(self) -> PPOConfig:
        if self.iterations <= self.critic_only_iterations:
            raise ValueError(
                f"iterations {self.iterations} must be more than critic_warmup_iterations "
                f"{self.critic_warmup_iterations}, in which the critic learns alone: the policy would stay as it was"
            )
        if self.stop_when and self.stop_when.held_out_worse and not self.eval_every:
            raise ValueError("stop_when has held_out_worse, which counts evaluations, but eval_every is 0")
        return self

"""The sections of a recipe. Pure data: nothing here imports torch or reads a file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
TopLayers = Annotated[float, Field(gt=0, le=1)]
TOP_LAYERS = 0.5  # of reward model and critic; docs/performance.md has the ablation


def _names_a_function(text: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", text):
        raise ValueError(f"expected package.module:function, got {text!r}")
    return text


def _names_a_package(text: str) -> str:
    if not text.isidentifier():
        raise ValueError(f"expected a package's name as it is imported, such as math_verify, got {text!r}")
    return text


def _in_order(steps: list[Step]) -> list[Step]:
    if not steps or [step for step in STEPS if step in steps] != steps:
        raise ValueError(f"expected some of {', '.join(STEPS)}, in this order and each once, got {', '.join(steps)}")
    return steps


def _can_be_set(name: str) -> str:
    if not name.isidentifier() or name in ("messages", "tools", "documents", "add_generation_prompt"):
        raise ValueError(f"a chat template takes no {name} from a recipe; name one of its own variables")
    return name


TemplateVariable = Annotated[str, AfterValidator(_can_be_set)]
FunctionName = Annotated[str, AfterValidator(_names_a_function)]
PackageName = Annotated[str, AfterValidator(_names_a_package)]

Role = Literal["policy", "reference", "reward", "critic"]
Stage = Literal["sft", "reward", "ppo"]
Quantization = Literal["nf4", "int8", "none"]
ObjectiveName = Literal["bradley_terry", "regression"]
Step = Literal["sft", "reward", "ppo", "evaluate", "report", "export"]
STEPS: tuple[Step, ...] = (
    "sft",
    "reward",
    "ppo",
    "evaluate",
    "report",
    "export",
)  # in the order in which they can be taken
Steps = Annotated[list[Step], AfterValidator(_in_order)]
DataKey = Literal["sft", "preferences", "prompts"]
MergeBase = Literal["dequantized", "original"]
Column = Literal["prompt", "chosen", "rejected", "margin", "tie", "completion", "score", "messages"]


class Section(BaseModel):
    """Strict: an unknown key, a boolean where a number belongs, NaN or infinity is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class ModelConfig(Section):
    """The frozen base model and how it is held in memory."""

    name: str = Field(min_length=1, description="Hub id, local folder, or `shipped:demo/model`.")
    revision: str | None = None
    quantization: Quantization = "nf4"
    double_quant: bool = True
    quantize_head: bool = False
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    trust_remote_code: bool = False


class LoraOverride(Section):
    """What one role does differently; a key left out is taken from `lora`."""

    r: PositiveInt | None = None
    alpha: PositiveInt | None = None
    target_modules: Literal["all-linear"] | list[str] | None = None


class ScalarLoraOverride(LoraOverride):
    """The same for a role that gives one number, not a token: the lower layers can do without an adapter."""

    top_layers: TopLayers | None = None


class LoraShape(Section):
    """Rank, scale and place of one adapter."""

    r: PositiveInt
    alpha: PositiveInt
    target_modules: Literal["all-linear"] | list[str]
    top_layers: TopLayers = 1.0

    def layer_count(self, layers: int) -> int:
        """How many of a model's layers, counted from the top, carry the adapter; at least one."""
        return max(1, round(self.top_layers * layers))


class LoraConfig(Section):
    """LoRA adapters (Hu et al. 2021). The update of a weight is `alpha / r * B @ A`."""

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    policy: LoraOverride = LoraOverride()
    reward: ScalarLoraOverride = ScalarLoraOverride()
    critic: ScalarLoraOverride = ScalarLoraOverride()

    def for_role(self, role: Literal["policy", "reward", "critic"]) -> LoraShape:
        """The settings of one role, its own where it has them."""
        override: LoraOverride | ScalarLoraOverride = getattr(self, role)
        top_layers = getattr(override, "top_layers", None) or (1.0 if role == "policy" else TOP_LAYERS)
        return LoraShape(
            r=override.r or self.r,
            alpha=override.alpha or self.alpha,
            target_modules=override.target_modules or self.target_modules,
            top_layers=top_layers,
        )


class DataConfig(Section):
    """Where examples come from. A source is a Hub id, the path of a file whose ending `lorarlhf.data.endings` knows, or
    a folder that `datasets` saved.

    Attributes:
        max_examples, eval_examples: the most that a stage trains on, and is tested on, drawn at random from those that
            are of use and not too long; None takes all.
    """

    sft: str | None = None
    sft_test: str | None = None
    preferences: str | None = None
    preferences_test: str | None = None
    prompts: str | None = None
    prompts_test: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    test_size: Fraction = 0.05
    max_examples: PositiveInt | None = None
    eval_examples: PositiveInt | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[TemplateVariable, Any] = {}
    wrap_text: Literal["auto", "always", "never"] = "auto"
    special_tokens: Literal["escape", "allow"] = Field(
        default="escape", description="What text that spells a special token, such as `<|im_end|>`, is: text, or it."
    )
    max_prompt_length: PositiveInt = 512
    max_length: PositiveInt = 1024
    on_bad_row: Literal["error", "skip"] = "error"
    ties: Literal["drop", "keep"] = "drop"
    columns: dict[Column, str] = {}


class TrainingConfig(Section):
    """What every stage has in common; the names are those of `transformers.TrainingArguments`."""

    learning_rate: PositiveFloat = 1e-4
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "linear"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    optim: str = "adamw_torch"
    gradient_checkpointing: bool = True
    save_total_limit: PositiveInt | None = 2
    report_to: list[str] = []


class SupervisedConfig(TrainingConfig):
    """Stages that go through a data set in epochs."""

    per_device_train_batch_size: PositiveInt = 4
    per_device_eval_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 4
    num_train_epochs: PositiveFloat = 1.0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    logging_steps: PositiveInt = 10
    save_steps: PositiveInt = 200


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning with TRL's SFTTrainer."""


class RewardConfig(SupervisedConfig):
    """Reward modelling with TRL's RewardTrainer."""

    objective: ObjectiveName = "bradley_terry"
    use_margin: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    center_rewards_coefficient: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _pairwise_options(self) -> RewardConfig:
        if self.objective == "regression" and (
            self.use_margin or self.label_smoothing or self.center_rewards_coefficient
        ):
            raise ValueError(
                "use_margin, label_smoothing and center_rewards_coefficient belong to objective bradley_terry; "
                "remove them or change the objective"
            )
        return self


class WeightedFunction(Section):
    """A Python function `f(prompts, responses) -> list[float]`, added to the reward with a weight."""

    function: FunctionName
    weight: float = 1.0


class StopWhen(Section):
    """When ppo ends before its last iteration; a rule left out never does.

    Attributes:
        kl: nats a response that the mean KL of an iteration may reach.
        held_out_worse: so many evaluations in a row worse than the best, by what `best` is chosen by.
    """

    kl: PositiveFloat | None = None
    held_out_worse: PositiveInt | None = None


class PPOConfig(TrainingConfig):
    """Reinforcement learning of the policy. Names follow TRL's PPOConfig; rates are scheduled by iteration.

    `advantage_estimator` is the algorithm: `gae` is PPO with a critic (Schulman et al. 2017; Ziegler et al. 2019);
    `rloo` (Ahmadian et al. 2024) and `grpo` (Shao et al. 2024) compare responses to one prompt and have no critic.
    """

    learning_rate: PositiveFloat = 1e-5
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"

    # Algorithm
    advantage_estimator: Literal["gae", "rloo", "grpo"] = "gae"
    num_generations: PositiveInt | None = None
    scale_rewards: Literal["group", "batch", "none"] = "group"

    # Rollouts; `batch_size` counts responses
    iterations: PositiveInt = 200
    batch_size: PositiveInt = 64
    response_length: PositiveInt = 128
    temperature: PositiveFloat = 1.0
    recompute_logprobs: bool = True

    # Optimisation
    num_ppo_epochs: PositiveInt = 4
    num_mini_batches: PositiveInt = 4
    micro_batch_tokens: PositiveInt | Literal["auto"] = 4096
    cliprange: PositiveFloat = 0.2
    cliprange_value: PositiveFloat = 0.2
    vf_coef: NonNegativeFloat = 0.1
    entropy_coef: NonNegativeFloat = 0.0
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    whiten_rewards: bool = False
    critic_warmup_iterations: NonNegativeInt = 0
    critic_learning_rate: PositiveFloat | None = None
    early_stop_kl: PositiveFloat | None = None

    # KL to the reference
    kl_coef: NonNegativeFloat = 0.05
    kl_estimator: Literal["k1", "k3"] = "k1"
    kl_in: Literal["reward", "loss"] | None = None
    kl_target: PositiveFloat | None = None
    kl_horizon: PositiveInt = 10_000

    # Reward
    reward_functions: list[FunctionName | WeightedFunction] = []
    reward_model_weight: float = 1.0
    normalize_reward: bool = False
    reward_clip: PositiveFloat | None = None
    missing_eos_penalty: NonNegativeFloat | None = None

    # Evaluation and checkpoints, in iterations
    eval_every: NonNegativeInt = 20
    eval_prompts: PositiveInt = 64
    save_every: NonNegativeInt = 20
    stop_when: StopWhen | None = None

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


class ExportConfig(Section):
    """How a trained adapter leaves the run: merged onto the base as training multiplied it, or as it was published."""

    merge: bool = True
    base: MergeBase = "dequantized"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    license: str | None = None


class Recipe(Section):
    """A whole run in one file; `stages` is what `lorarlhf run` does of it."""

    stages: Steps = ["reward", "ppo", "evaluate", "export"]
    requires: list[PackageName] = Field(
        default=[], description="Installed packages, as they are imported, that `ppo.reward_functions` may come from."
    )
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    sft: SFTConfig = SFTConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    export: ExportConfig = ExportConfig()
    seed: NonNegativeInt = 42

    @property
    def prompts_evaluated(self) -> int:
        """How many held-out prompts an evaluation of ppo samples at most; 0 where there is none."""
        most = min(self.ppo.eval_prompts, self.data.eval_examples or self.ppo.eval_prompts)
        return most if self.ppo.eval_every else 0

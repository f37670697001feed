"""What all stages have in common, and the two that go through a data set in epochs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lorarlhf.recipe.sections.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

ObjectiveName = Literal["bradley_terry", "regression"]
Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow", "swanlab"]
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]


class TrainingConfig(Section):
    """What every stage has in common; the names are those of `transformers.TrainingArguments`."""

    learning_rate: PositiveFloat = 1e-4
    """The optimiser's highest rate. LoRA bears about ten times that of full fine-tuning. Halve it where the loss jumps,
    double it where nothing is learnt."""

    lr_scheduler_type: Schedule = "linear"
    """How the rate goes on: `linear` and `cosine` fall to 0 at the end, the others stay."""

    warmup_steps: NonNegativeInt = 0
    """Steps in which the rate rises from 0; not with `constant`. Some dozens help where the first steps are wild."""

    weight_decay: NonNegativeFloat = 0.0
    """By how much the optimiser pulls adapters towards 0, times the rate. Rarely worth a change with LoRA."""

    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm where theirs is larger."""

    optim: str = "adamw_torch"
    """The optimiser, by its name in transformers. `paged_adamw_8bit` takes a quarter of the memory of `adamw_torch` for
    its state and needs a CUDA GPU."""

    gradient_checkpointing: bool = True
    """Whether a layer's activations are computed again in the backward pass instead of kept: far less memory, about a
    third more time. Turn it off where memory is no concern."""

    save_total_limit: PositiveInt | None = 2
    """How many checkpoints are kept, the newest; null keeps all. What the stage chose in the end is kept beside
    them."""

    report_to: list[Tracker] = []
    """Trackers that get all numbers and samples, as [tensorboard]; each must be installed (docs/trackers.md)."""


class SupervisedConfig(TrainingConfig):
    """Stages that go through a data set in epochs."""

    per_device_train_batch_size: PositiveInt = 4
    """Examples computed at a time in training. The first to lower where memory is short; raise
    `gradient_accumulation_steps` by as much."""

    per_device_eval_batch_size: PositiveInt = 8
    """Examples computed at a time in evaluations of `sft`; reward models are evaluated by tokens."""

    gradient_accumulation_steps: PositiveInt = 4
    """Batches that make one step of the optimiser: a step sees this many times `per_device_train_batch_size`, times the
    number of processes."""

    num_train_epochs: PositiveFloat = 1.0
    """Passes through the data; 0.5 is half of one. Reward models tend to overfit from the second on."""

    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Steps of the optimiser after which training ends, in place of `num_train_epochs`; -1 is no limit."""

    logging_steps: PositiveInt = 10
    """Steps between two rows of numbers."""

    save_steps: PositiveInt = 200
    """Steps between two checkpoints, which `--resume` goes on from."""


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning with TRL's SFTTrainer."""


class RewardConfig(SupervisedConfig):
    """Reward modelling with TRL's RewardTrainer."""

    objective: ObjectiveName = "bradley_terry"
    """What is learnt: `bradley_terry` which of two responses is better, `regression` the number that rates one."""

    use_margin: bool = False
    """Whether scores must be apart by what the data says (its margin); every row needs one. Worth a try where people
    said how much better."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability with which each comparison is taken to be wrong. `lorarlhf data agreement` suggests it where several
    people labelled the same pairs."""

    center_rewards_coefficient: NonNegativeFloat = 0.0
    """Weight of a term that keeps scores near 0, which the comparisons alone leave open; 0.01 is usual."""

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

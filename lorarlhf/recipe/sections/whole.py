"""A whole recipe: its stages, its sections and what is left of it in the end."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lorarlhf.recipe.sections.data import DataConfig
from lorarlhf.recipe.sections.model import LoraConfig, ModelConfig
from lorarlhf.recipe.sections.ppo import PPOConfig
from lorarlhf.recipe.sections.section import PackageName, Section
from lorarlhf.recipe.sections.training import RewardConfig, SFTConfig

Stage = Literal["sft", "reward", "ppo"]
Step = Literal["sft", "reward", "ppo", "evaluate", "report", "export"]
# In the order in which they can be taken.
STEPS: tuple[Step, ...] = ("sft", "reward", "ppo", "evaluate", "report", "export")
MergeBase = Literal["dequantized", "original"]


def _in_order(steps: list[Step]) -> list[Step]:
    if not steps or [step for step in STEPS if step in steps] != steps:
        raise ValueError(f"expected some of {', '.join(STEPS)}, in this order and each once, got {', '.join(steps)}")
    return steps


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's generators take
Steps = Annotated[list[Step], AfterValidator(_in_order)]


class ExportConfig(Section):
    """How a trained adapter leaves the run: merged onto the base as training multiplied it, or as it was published."""

    merge: bool = True
    """Whether the adapter is merged into the base model: a folder that anything loads, as large as the model. false
    writes the adapter alone, some megabytes that need the base."""

    base: MergeBase = "dequantized"
    """What it is merged onto: `dequantized` is the base as training multiplied it, `original` as it was published,
    which makes a slightly other model."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the merged weights; `auto` is bfloat16, and of reward models what the run computes in."""

    license: str | None = None
    """Licence that the model card names, by its identifier on the Hub, as apache-2.0. That of the base model counts."""


class Recipe(Section):
    """A whole run in one file; `stages` is what `lorarlhf run` does of it."""

    stages: Steps = ["reward", "ppo", "evaluate", "export"]
    """What `lorarlhf run` does, in this order: some of sft, reward, ppo, evaluate, report, export. Leave `sft` out
    where the model answers well already, and `reward` where functions are the reward."""

    requires: list[PackageName] = []
    """Installed packages, as they are imported, that functions of `ppo.reward_functions` may come from, as
    [math_verify]. Modules below the current folder need no mention."""

    model: ModelConfig
    """The frozen base model and how it is held in memory."""

    lora: LoraConfig = LoraConfig()
    """The adapters that are trained on it."""

    data: DataConfig = DataConfig()
    """Where examples come from."""

    sft: SFTConfig = SFTConfig()
    """How `sft` learns from demonstrations."""

    reward: RewardConfig = RewardConfig()
    """How the reward model learns from comparisons."""

    ppo: PPOConfig = PPOConfig()
    """How the policy learns from rewards."""

    export: ExportConfig = ExportConfig()
    """How what was trained leaves the run."""

    seed: Seed = 42
    """Seed of everything random: adapters at the start, order of the data, responses. Change it to see what is
    chance."""

    @property
    def prompts_evaluated(self) -> int:
        """How many held-out prompts an evaluation of ppo samples at most; 0 where there is none."""
        most = min(self.ppo.eval_prompts, self.data.eval_examples or self.ppo.eval_prompts)
        return most if self.ppo.eval_every else 0

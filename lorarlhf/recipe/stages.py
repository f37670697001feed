"""The three stages of a run, and everything that one table can say of how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorarlhf.recipe.sections import DataConfig, Role, Stage


@dataclass(frozen=True)
class StageInfo:
    """One stage.

    Attributes:
        title: what people call it.
        data_key: the key of `data` that holds what it trains on; `KEY_test` holds what it is tested on.
        role: whose adapter it leaves in the run.
        unit: what its progress is counted in.
        columns: logged numbers that the display shows, by their headings.
    """

    name: Stage
    title: str
    data_key: str
    role: Role
    unit: str
    columns: Mapping[str, str]

    def source(self, data: DataConfig) -> str | None:
        """What the stage trains on: PPO takes the prompts of comparisons if it has none of its own."""
        if self.name == "ppo":
            return data.prompts or data.preferences
        value: str | None = getattr(data, self.data_key)
        return value


STAGES: dict[Stage, StageInfo] = {
    info.name: info
    for info in (
        StageInfo(
            name="sft",
            title="fine-tuning",
            data_key="sft",
            role="policy",
            unit="step",
            columns={"loss": "loss", "mean_token_accuracy": "token accuracy", "eval_loss": "held-out loss"},
        ),
        StageInfo(
            name="reward",
            title="reward model",
            data_key="preferences",
            role="reward",
            unit="step",
            columns={"loss": "loss", "accuracy": "accuracy", "margin": "margin"},
        ),
        StageInfo(
            name="ppo",
            title="policy",
            data_key="prompts",
            role="policy",
            unit="iteration",
            columns={
                "reward": "reward",
                "kl": "KL",
                "entropy": "entropy",
                "response_length": "length",
                "tokens_per_second": "tokens/s",
                "peak_memory_gb": "peak GB",
                "eval_reward": "held-out reward",
                "eval_kl": "held-out KL",
            },
        ),
    )
}

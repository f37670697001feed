"""The three stages of a run, and everything that one table can say of how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorarlhf.recipe.sections import DataConfig, DataKey, Recipe, Role, Source, Stage, sources_of, title_of


@dataclass(frozen=True)
class StageInfo:
    """One stage.

    Attributes:
        title: what people call it.
        data_keys: keys of `data` that it takes what it trains on from, the first that is set; `KEY_test` of the first
            holds what it is tested on.
        role: whose adapter it leaves in the run.
        product: what that adapter makes of the base model, as the model card says it; `{algorithm}` stands in it and
            in `tags` for what the recipe chose.
        tags: of the model card, beside `lorarlhf` and `lora`.
        unit: what its progress is counted in.
        columns: logged numbers that the display shows, by their headings.
        samples: whether it learns from what its model responds, and not from rows of text: its memory and its examples
            are counted in rollouts.
        starts_from: the stage whose adapter it goes on training, if that has run.
        needs: the stage whose adapter it cannot do without, unless Python functions take its place.
    """

    name: Stage
    title: str
    data_keys: tuple[DataKey, ...]
    role: Role
    product: str
    tags: tuple[str, ...]
    unit: str
    columns: Mapping[str, str]
    samples: bool = False
    starts_from: Stage | None = None
    needs: Stage | None = None

    @property
    def data_key(self) -> DataKey:
        """The key of `data` that is this stage's own."""
        return self.data_keys[0]

    @property
    def scores(self) -> bool:
        """True if what it leaves gives a text one number; otherwise it writes texts."""
        return self.role == "reward"

    def source(self, data: DataConfig) -> str | None:
        """What the stage trains on, in words; None if the recipe does not say."""
        named = next((sources for key in self.data_keys if (sources := getattr(data, key))), None)
        return title_of(sources_of(named)) if named else None

    def sources(self, data: DataConfig) -> dict[str, tuple[Source, ...]]:
        """What the stage trains and is tested on, by their keys."""
        keys = [self.data_key, f"{self.data_key}_test"]
        if getattr(data, self.data_key) is None:
            keys += [name for key in self.data_keys for name in (key, f"{key}_test") if name not in keys]
        return {key: sources for key in keys if (sources := sources_of(getattr(data, key)))}


STAGES: dict[Stage, StageInfo] = {
    info.name: info
    for info in (
        StageInfo(
            name="sft",
            title="fine-tuning",
            data_keys=("sft",),
            role="policy",
            product="a language model, fine-tuned on demonstrations",
            tags=("sft",),
            unit="step",
            columns={"loss": "loss", "mean_token_accuracy": "token accuracy", "eval_loss": "held-out loss"},
        ),
        StageInfo(
            name="reward",
            title="reward model",
            data_keys=("preferences",),
            role="reward",
            product="a reward model: it scores how good a response is",
            tags=("rlhf", "reward-model"),
            unit="step",
            columns={"loss": "loss"},  # and those of the objective
        ),
        StageInfo(
            name="ppo",
            title="policy",
            data_keys=("prompts", "preferences"),  # comparisons have prompts too
            role="policy",
            product="a language model, trained with {algorithm} against a reward model",
            tags=("rlhf", "{algorithm}"),
            unit="iteration",
            columns={
                "reward": "reward",
                "kl": "KL",
                "entropy": "entropy",
                "response_length": "length",
                "finished": "finished",
                "tokens_per_second": "tokens/s",
                "peak_memory_gb": "peak GB",
                "eval_reward": "held-out reward",
                "eval_kl": "held-out KL",
            },
            samples=True,
            starts_from="sft",
            needs="reward",
        ),
    )
}

# The latest in the life of a run first; a reward model is a means, so policies come before it.
POLICY_STAGES: tuple[Stage, ...] = tuple(info.name for info in reversed(STAGES.values()) if not info.scores)
LAST_FIRST: tuple[Stage, ...] = (*POLICY_STAGES, *(info.name for info in STAGES.values() if info.scores))


def trained_by(recipe: Recipe) -> list[Stage]:
    """Those of the recipe's `stages` that train, in order."""
    return [stage for stage in STAGES if stage in recipe.stages]

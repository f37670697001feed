"""What a reward model is trained for: one class an objective, and one table of them.

An objective knows its rows, its batches, its loss, and what is said of how well it was met.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Dataset, interleave_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorarlhf.data.examples import Split
from lorarlhf.data.held_out import HeldOut, held_out_preferences
from lorarlhf.data.tokenize import Tokenized
from lorarlhf.data.tokenized import preference_examples, scored_examples
from lorarlhf.recipe.sections import DataConfig, ObjectiveName, RewardConfig
from lorarlhf.training.baselines import bag_of_words
from lorarlhf.training.breakdown import accuracy_by_group, breakdown_lines, length_controlled, reward_bench
from lorarlhf.training.reward_metrics import (
    longer_wins,
    margin_histogram,
    preference_metrics,
    regression_metrics,
    reliability,
    reliability_lines,
    share_won,
)

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]
LossAndNumbers = tuple[Tensor, dict[str, Tensor]]


class Objective(ABC):
    """One objective.

    Attributes:
        sequences: the columns of a tokenised row that hold sequences to score, two of a pair.
        columns: logged numbers that the display shows beside the loss, by their headings.
    """

    sequences: ClassVar[tuple[str, ...]]
    columns: ClassVar[Mapping[str, str]]

    @abstractmethod
    def examples(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
        """The rows of `data.preferences` as this objective takes them."""

    def held_out_rows(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
        """The test rows, with what is known of each; of pairs that is their groups, and what annotators said."""
        return HeldOut(self.examples(config, tokenizer, "test"))

    @abstractmethod
    def collator(self, pad_token_id: int) -> Collator:
        """Rows in, a batch with `input_ids` and `attention_mask` out; of pairs, all chosen sides come first."""

    @abstractmethod
    def loss(self, scores: Tensor, batch: Mapping[str, Tensor], config: RewardConfig) -> LossAndNumbers:
        """The mean loss of the [B] scores of a batch's sequences; and `columns`, each [n], to be averaged and logged.

        `mean_reward`, of the scores themselves, is logged anyway.
        """

    def scores(self, rows: Dataset, score: Callable[[Sequence[Sequence[int]]], Tensor]) -> list[Tensor]:
        """[N] scores of each of `sequences` by a scorer that gives [M] for M sequences.

        It is asked for all of a row's one after the other: the sides of a pair begin alike, which saves work. They stay
        on the disk until it takes them.
        """
        sides = [rows.select_columns(column).rename_column(column, "ids") for column in self.sequences]
        asked = interleave_datasets(sides)["ids"]
        return list(score(asked).view(len(rows), len(self.sequences)).unbind(1))

    @abstractmethod
    def held_out(self, test: Dataset, scores: Sequence[Tensor]) -> dict[str, Any]:
        """Metrics `eval_...` of [N] scores for each of `sequences`."""

    def baselines(self, train: Callable[[], Dataset], test: Dataset) -> dict[str, Any]:
        """What plain models of the same rows reach, learnt from some of `train`; nothing where there are none.

        `train` is asked for only if there are: tokenising it takes time.
        """
        return {}

    def breakdown(self, test: Dataset, scores: Sequence[Tensor], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Where it is met and where not, for a report; nothing where there is nothing to tell apart."""
        return {}

    @abstractmethod
    def result(self, summary: Mapping[str, Any]) -> str:
        """A summary with these metrics in half a line."""

    @abstractmethod
    def report(self, evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
        """These metrics line by line, each with its heading."""


class BradleyTerry(Objective):
    """The response that people chose should score higher than the one they rejected."""

    sequences = ("chosen_ids", "rejected_ids")
    columns: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy", "margin": "margin"}

    def examples(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
        return preference_examples(config, tokenizer, split)

    def held_out_rows(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
        return held_out_preferences(config, tokenizer)

    def collator(self, pad_token_id: int) -> Collator:
        from lorarlhf.training.collators import PairCollator  # TRL takes seconds, and the planner reads this file

        return PairCollator(pad_token_id)

    def loss(self, scores: Tensor, batch: Mapping[str, Tensor], config: RewardConfig) -> LossAndNumbers:
        chosen, rejected = scores.chunk(2)
        ties = batch.get("tie")
        margin = batch.get("margin") if config.use_margin else None
        loss = bradley_terry_loss(
            chosen, rejected, margin, config.label_smoothing, config.center_rewards_coefficient, ties
        )
        decided = chosen - rejected if ties is None else (chosen - rejected)[~ties]
        return loss, {"accuracy": (decided > 0).float(), "margin": decided}

    def held_out(self, test: Dataset, scores: Sequence[Tensor]) -> dict[str, Any]:
        longer = longer_wins(*(test[column] for column in self.sequences))  # read as they are iterated
        margins = scores[0] - scores[1]
        return {
            **preference_metrics(*scores),
            "longer_wins_accuracy": longer,
            "reliability": reliability(margins),
            "margins": margin_histogram(margins),
        }

    def baselines(self, train: Callable[[], Dataset], test: Dataset) -> dict[str, Any]:
        return {"bag_of_words_accuracy": share_won(bag_of_words(train(), test))}

    def breakdown(self, test: Dataset, scores: Sequence[Tensor], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        margins = scores[0] - scores[1]
        by_group = accuracy_by_group(margins, groups)
        return {
            "same_length": length_controlled(margins, *(test[column] for column in self.sequences)),
            "groups": by_group,
            "reward_bench": reward_bench(by_group.get("subset", {})),
        }

    def result(self, summary: Mapping[str, Any]) -> str:
        rivals = {"the longer": "longer_wins_accuracy", "a bag of words": "bag_of_words_accuracy"}
        beside = ", ".join(f"{name}: {summary[key]:.1%}" for name, key in rivals.items())
        return (
            f"held-out accuracy {summary['eval_accuracy']:.1%} ({beside}), margin {summary['eval_margin']:.2f} "
            f"on {summary['eval_examples']} pairs"
        )

    def report(self, evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
        low, high = evaluation["eval_accuracy_interval"]
        return [
            ("", f"reward on {evaluation['examples']:,} comparisons of {evaluation['data']}"),
            ("accuracy", f"{evaluation['eval_accuracy']:.1%}  (95%: {low:.1%} to {high:.1%})"),
            ("longer wins", f"{evaluation['longer_wins_accuracy']:.1%}"),
            *(  # not in an evaluation of an earlier version, which a card may tell of
                [("bag of words", f"{evaluation['bag_of_words_accuracy']:.1%}")]
                if "bag_of_words_accuracy" in evaluation
                else []
            ),
            ("margin", f"{evaluation['eval_margin']:.3f}"),
            ("loss", f"{evaluation['eval_loss']:.3f}"),
            ("calibration error", f"{evaluation['eval_calibration_error']:.3f}"),
            *reliability_lines(evaluation.get("reliability", [])),
            *breakdown_lines(evaluation),
        ]


class Regression(Objective):
    """A response should score what people rated it."""

    sequences = ("input_ids",)
    columns: ClassVar[Mapping[str, str]] = {"mean_reward": "mean reward"}

    def examples(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Tokenized:
        return scored_examples(config, tokenizer, split)

    def collator(self, pad_token_id: int) -> Collator:
        from lorarlhf.training.collators import ScoredCollator

        return ScoredCollator(pad_token_id)

    def loss(self, scores: Tensor, batch: Mapping[str, Tensor], config: RewardConfig) -> LossAndNumbers:
        return regression_loss(scores, batch["score"]), {}

    def held_out(self, test: Dataset, scores: Sequence[Tensor]) -> dict[str, Any]:
        return regression_metrics(scores[0], torch.tensor(test["score"]))

    def result(self, summary: Mapping[str, Any]) -> str:
        return (
            f"held-out error {summary['eval_loss']:.3f}, correlation {summary['eval_correlation'] or 0:.3f} "
            f"on {summary['eval_examples']} examples"
        )

    def report(self, evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
        correlation = evaluation["eval_correlation"]
        return [
            ("", f"reward on {evaluation['examples']:,} ratings of {evaluation['data']}"),
            ("squared error", f"{evaluation['eval_loss']:.3f}"),
            ("correlation", "undefined" if correlation is None else f"{correlation:.3f}"),
        ]


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "bradley_terry": BradleyTerry(),
    "regression": Regression(),
}


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    ties: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood that the chosen response wins (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    Args:
        chosen, rejected: [B] scores.
        margin: [B] by how much the chosen one should win (Touvron et al. 2023, eq. 2).
        label_smoothing: the share of labels taken to be flipped (Wang et al. 2024, "Secrets of RLHF II").
        center_rewards_coefficient: weight of (chosen + rejected)^2, which pulls the mean score to 0
            (Eisenstein et al. 2023, eq. 2).
        ties: [B] bool, pairs of which neither won: each side wins with a target of 0.5, without margin.

    Returns:
        Scalar mean over the pairs.
    """
    difference = chosen - rejected
    if margin is not None:
        difference = difference - (margin if ties is None else margin.masked_fill(ties, 0.0))
    lost = torch.full_like(difference, label_smoothing)  # the probability that the rejected response should have won
    if ties is not None:
        lost = lost.masked_fill(ties, 0.5)
    loss = -(1 - lost) * F.logsigmoid(difference) - lost * F.logsigmoid(-difference)
    return loss.mean() + center_rewards_coefficient * (chosen + rejected).square().mean()


def regression_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error between [B] scores and [B] absolute ratings."""
    return F.mse_loss(scores, targets)

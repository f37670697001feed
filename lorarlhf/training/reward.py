"""The reward model: TRL's RewardTrainer on the shared backbone's reward role."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.recipe.sections import RewardConfig
from lorarlhf.training.arguments import supervised_arguments
from lorarlhf.training.checkpoint import RoleCheckpoints
from lorarlhf.training.objectives import bradley_terry_loss, regression_loss


class RewardModelTrainer(RoleCheckpoints, RewardTrainer):
    """TRL's RewardTrainer with label smoothing and regression, on a backbone's `sequence_classifier`."""

    def __init__(self, backbone: SharedBackbone, config: RewardConfig, train: Dataset, folder: Path, seed: int) -> None:
        self.backbone = backbone
        self.config = config
        backbone.train_roles("reward")
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        if config.objective == "bradley_terry" and not config.use_margin and "margin" in train.column_names:
            train = train.remove_columns("margin")
        super().__init__(
            model=backbone.sequence_classifier(),
            args=TRLRewardConfig(**supervised_arguments(config, folder, seed, backbone.compute_dtype), max_length=None),
            data_collator=(PairCollator if config.objective == "bradley_terry" else ScoredCollator)(
                backbone.tokenizer.pad_token_id
            ),
            train_dataset=train,
            processing_class=backbone.tokenizer,
        )
        backbone.train_roles("reward")  # should TRL have cast the adapter: back to float32
        self.remove_callback(PrinterCallback)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows are tokenised already, as PPO will see them."""
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = outputs.logits.squeeze(-1)
        metrics: dict[str, list[float]] = self._metrics["train" if model.training else "eval"]
        if self.config.objective == "regression":
            loss = regression_loss(scores, inputs["score"])
        else:
            chosen, rejected = scores.chunk(2)
            ties = inputs.get("tie")
            loss = bradley_terry_loss(
                chosen,
                rejected,
                inputs.get("margin"),
                self.config.label_smoothing,
                self.config.center_rewards_coefficient,
                ties,
            )
            margins = chosen - rejected if ties is None else (chosen - rejected)[~ties]
            if len(margins):
                metrics["accuracy"].append((margins > 0).float().mean().item())
                metrics["margin"].append(margins.mean().item())
        metrics["mean_reward"].append(scores.mean().item())
        return (loss, outputs) if return_outputs else loss


class PairCollator(DataCollatorForPreference):
    """TRL's, which drops the column it does not know: `tie`, a bool a pair."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if "tie" in examples[0]:
            batch["tie"] = torch.tensor([example["tie"] for example in examples])
        return batch


class ScoredCollator:
    """Right-pad rated sequences into a batch."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, list[Tensor]] = defaultdict(list)
        for row in rows:
            batch["input_ids"].append(torch.tensor(row["input_ids"]))
            batch["attention_mask"].append(torch.ones(len(row["input_ids"]), dtype=torch.long))
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(batch["input_ids"], batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad(batch["attention_mask"], batch_first=True),
            "score": torch.tensor([row["score"] for row in rows], dtype=torch.float32),
        }

"""In how many passes a step of sft computes its loss."""

from types import SimpleNamespace

import pytest
import torch
from trl import SFTTrainer

from lorarlhf.training.sft import PolicySFTTrainer


@pytest.mark.parametrize(
    ("processes", "router_loss", "widths"), [(1, False, [600, 2]), (2, False, [600]), (1, True, [600])]
)
def test_rows_of_other_lengths_are_other_passes_where_losses_add_up(monkeypatch, processes, router_loss, widths):
    """Of several processes each would make its own number of passes, and wait in one for the others' for ever."""
    trainer = object.__new__(PolicySFTTrainer)
    trainer.accelerator = SimpleNamespace(num_processes=processes)
    trainer.aux_loss_enabled = router_loss
    seen = []

    def loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seen.append(inputs["input_ids"].shape[1])
        return inputs["attention_mask"].sum() / num_items_in_batch

    monkeypatch.setattr(SFTTrainer, "compute_loss", loss)
    mask = torch.zeros(2, 600)
    mask[0, :2] = mask[1] = 1
    batch = {"input_ids": torch.ones(2, 600, dtype=torch.long), "attention_mask": mask.long()}
    assert trainer.compute_loss(None, batch, num_items_in_batch=7).item() == pytest.approx(602 / 7)
    assert seen == widths

"""More GPUs than one process uses: said once, by each stage that could use them."""

import pytest
import torch
from demo_runs import small_recipe

from lorarlhf import Run, UserError, train_ppo, train_reward, train_sft
from lorarlhf.stages.loading import mention_other_gpus


@pytest.mark.parametrize(
    ("gpus", "processes", "said"), [(2, None, True), (4, "1", True), (1, None, False), (2, "2", False)]
)
def test_one_line_where_gpus_lie_idle(monkeypatch, caplog, gpus, processes, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("WORLD_SIZE", processes)
    mention_other_gpus("sft")
    launch = f"torchrun --nproc_per_node {gpus} -m lorarlhf sft ..."
    assert caplog.messages == [f"{gpus} GPUs are visible and the first is used; all of them: {launch}"] * said


@pytest.mark.parametrize(("stage", "train"), [("sft", train_sft), ("reward", train_reward), ("ppo", train_ppo)])
def test_every_stage_says_so(monkeypatch, caplog, tmp_path, stage, train):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    recipe = small_recipe(tmp_path, "model.name=no/such/model", 'ppo.reward_functions=["demo_runs:letter_e"]')
    with pytest.raises(UserError, match="no/such/model"):
        train(recipe, Run(tmp_path / "run"))
    assert [message for message in caplog.messages if f"lorarlhf {stage} ..." in message]

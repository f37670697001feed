"""More GPUs than one process uses: said once, by each stage that could use them."""

import pytest
import torch
from demo_runs import small_recipe, write_jsonl

from lorarlhf import Run, UserError, train_ppo, train_reward, train_sft
from lorarlhf.stages.data_sources import check_data
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


@pytest.mark.parametrize(("stage", "key"), [("sft", "sft"), ("reward", "preferences"), ("ppo", "prompts")])
def test_held_out_rows_of_another_kind_are_told_of_before_anything_is_loaded(tmp_path, stage, key):
    """`lorarlhf run` looks at all its stages first: the last may come to its own after hours."""
    other = write_jsonl(tmp_path / "other.jsonl", [{"colour": "red"}])
    recipe = small_recipe(tmp_path, f"data.{key}_test={other}")
    with pytest.raises(UserError, match=r"other\.jsonl:1: columns not recognised"):
        check_data(stage, recipe)

"""Scores of a reward model over many rows."""

import pytest
import torch
from demo_runs import small_recipe

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.evaluation.reward_model import score_tokens


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    recipe = small_recipe(tmp_path_factory.mktemp("reward_model"))
    backbone = load_backbone(recipe.model)
    torch.manual_seed(0)
    backbone.attach("reward", recipe.lora.for_role("reward"))
    return backbone


@pytest.mark.parametrize("token_budget", [1, 12, 1000])
def test_scores_keep_their_order_in_batches_of_any_size(backbone, token_budget):
    rows = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 2], [1, 70, 71], [1, 80, 81, 82]]
    with torch.no_grad():
        alone = [backbone.scores(TokenBatch.from_lists([row], [[]])).item() for row in rows]
    assert len(set(alone)) == len(rows)
    assert score_tokens(backbone, rows, token_budget=token_budget).tolist() == pytest.approx(alone, abs=1e-5)

"""Scores of a reward model over many rows."""

import pytest
import torch
from demo_runs import small_recipe

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.load import load_backbone
from lorarlhf.errors import UserError
from lorarlhf.evaluation import reward_model
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


def test_of_many_rows_few_are_in_memory_at_once(backbone, monkeypatch):
    class OnDisk(list):
        def __getitem__(self, rows):
            assert rows.stop - rows.start == 2
            return super().__getitem__(rows)

        def __iter__(self):
            raise AssertionError("read as a whole")

    rows = [[1, 40, 41], [1, 50], [1, 60, 61]]
    expected = score_tokens(backbone, rows)
    monkeypatch.setattr(reward_model, "ROWS_AT_ONCE", 2)
    torch.testing.assert_close(score_tokens(backbone, OnDisk(rows)), expected)


def test_scoring_goes_on_with_less_at_a_time_where_memory_runs_out(backbone, monkeypatch):
    rows = [[70 + i, *range(40, 45 + i)] for i in range(9)]  # none begins as another does
    expected, real, seen = score_tokens(backbone, rows), backbone.scores, []

    def scores(sequences, *args):
        seen.append(len(sequences))
        if len(sequences) > 3:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return real(sequences, *args)

    monkeypatch.setattr(backbone, "scores", scores)
    advanced = []
    torch.testing.assert_close(score_tokens(backbone, rows, advanced.append), expected)
    assert seen[0] == 9
    assert sum(advanced) == 9
    monkeypatch.setattr(backbone, "scores", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match=r"scoring: out of memory with a single sequence of 14 tokens; lower data\."):
        score_tokens(backbone, rows)

import math

import pytest
import torch

from lorarlhf.backbone.logprobs import Softmax
from lorarlhf.generation.draw import draw, uniform_table


@pytest.mark.parametrize("vocabulary", [1, 11, 256, 257, 1000])
def test_a_draw_inverts_the_cumulative_distribution(vocabulary):
    scores = 3 * torch.randn(200, vocabulary, generator=torch.Generator().manual_seed(0))
    numbers = uniform_table(200, 1, 1)[:, 0]
    drawn = draw(Softmax(scores, 0.7), numbers)
    for row, token, number in zip(scores.tolist(), drawn.tolist(), numbers.tolist(), strict=True):
        weights = [math.exp(score / 0.7) for score in row]
        below, share = sum(weights[:token]) / sum(weights), weights[token] / sum(weights)
        assert below - 1e-6 <= number <= below + share + 1e-6


def test_a_token_without_probability_is_never_drawn():
    scores = torch.full((500, 600), -1e4)
    scores[:, [3, 255, 256, 580]] = 0.0
    assert draw(Softmax(scores, 1.0), uniform_table(500, 1, 0)[:, 0]).unique().tolist() == [3, 255, 256, 580]


def test_a_number_at_the_very_end_draws_the_last_token_with_probability():
    scores = torch.zeros(1, 700).index_fill(1, torch.arange(650, 700), -1e4)
    assert draw(Softmax(scores, 1.0), torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 649


def test_a_table_depends_on_its_key_alone():
    table = uniform_table(5, 3, "rollout", 7, 2)
    torch.manual_seed(1)
    assert torch.equal(uniform_table(5, 3, "rollout", 7, 2), table)
    others = [uniform_table(5, 3, *key) for key in (("rollout", 7, 3), ("rollout", 8, 2), ("held-out", 7, 2))]
    assert all(not torch.equal(other, table) for other in others)
    assert table.dtype == torch.float64
    assert ((table >= 0) & (table < 1)).all()
    assert table.unique().numel() == 15

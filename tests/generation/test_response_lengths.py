import ppo_reference as reference
import pytest
import torch
from torch.testing import assert_close

from lorarlhf.generation.sample import response_lengths
from lorarlhf.rl.advantages import generalized_advantages, token_rewards

EOS, OTHER_STOP, PAD = 7, 8, 0

RESPONSES = [
    pytest.param([1, 2, EOS, PAD], [EOS], 3, True, id="stops"),
    pytest.param([1, 2, EOS, EOS], [EOS], 3, True, id="padded with eos"),
    pytest.param([EOS, EOS, EOS, EOS], [EOS], 1, True, id="immediately eos, padded with eos"),
    pytest.param([EOS, PAD, PAD, PAD], [EOS], 1, True, id="immediately eos"),
    pytest.param([1, 2, 3, 4], [EOS], 4, False, id="cut at the limit"),
    pytest.param([1, 2, 3, EOS], [EOS], 4, True, id="stops just at the limit"),
    pytest.param([PAD, PAD, 3, EOS], [EOS], 4, True, id="pad sampled as a token"),
    pytest.param([PAD, PAD, PAD, PAD], [EOS], 4, False, id="nothing but pad"),
    pytest.param([1, EOS, 3, 4], [EOS], 2, True, id="garbage after the end"),
    pytest.param([1, EOS, 3, OTHER_STOP], [OTHER_STOP, EOS], 2, True, id="first of two stops"),
    pytest.param([1, OTHER_STOP, EOS, 4], [EOS, OTHER_STOP], 2, True, id="second of two stops"),
    pytest.param([1, OTHER_STOP, 2, EOS], [EOS], 4, True, id="not a stop"),
    pytest.param([1, EOS, 2, 3], [], 4, False, id="nothing stops"),
    pytest.param([EOS], [EOS], 1, True, id="a limit of one, finished"),
    pytest.param([1], [EOS], 1, False, id="a limit of one, cut"),
]


@pytest.mark.parametrize(("tokens", "stops", "length", "finished"), RESPONSES)
def test_length_runs_to_the_first_stop_token_or_the_limit(tokens, stops, length, finished):
    lengths, ended = response_lengths(torch.tensor([tokens]), stops)
    assert lengths.tolist() == [length]
    assert ended.tolist() == [finished]
    assert ended.dtype == torch.bool
    assert not lengths.is_floating_point()
    assert reference.token_positions(5, tokens, stops)[:2] == (length, finished)


@pytest.mark.parametrize("stops", [[EOS], [EOS, OTHER_STOP], []])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lengths_equal_the_reference(seed, stops):
    tokens = torch.randint(10, (40, 9), generator=torch.Generator().manual_seed(seed))
    lengths, finished = response_lengths(tokens, stops)
    expected = [reference.token_positions(0, row, stops) for row in tokens.tolist()]
    assert lengths.tolist() == [row.length for row in expected]
    assert finished.tolist() == [row.finished for row in expected]


def test_tokens_after_the_first_stop_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, (40, 9), generator=generator)
    lengths, finished = response_lengths(tokens, [EOS])
    after = torch.arange(9) >= lengths[:, None]
    for filled in (tokens.masked_fill(after, EOS), tokens.masked_fill(after, PAD), tokens.masked_fill(after, 3)):
        again, still_finished = response_lengths(filled, [EOS])
        assert torch.equal(again, lengths)
        assert torch.equal(still_finished, finished)


def test_reference_positions_worked_by_hand():
    # Prompts padded on the left to five columns; the first response token is predicted from the last prompt column.
    assert reference.token_positions(5, [1, EOS, EOS, EOS], [EOS]) == (2, True, [5, 6], [4, 5])
    assert reference.token_positions(5, [1, 2, 3, 4], [EOS]) == (4, False, [5, 6, 7, 8], [4, 5, 6, 7])


@pytest.mark.parametrize("pad", [PAD, EOS], ids=["own pad", "pad is eos"])
def test_from_tokens_to_advantages(pad):
    """The score lands on the sampled stop token, whatever the padding looks like."""
    responses = [[1, 2, EOS], [EOS], [1, 2, 3, 4, 5], [3, 1, 2, 4, EOS]]
    width, gamma, lam, kl_coef = 5, 0.9, 0.8, 0.1
    scores = [1.0, -2.0, 3.0, 0.5]
    generator = torch.Generator().manual_seed(0)
    kl, values = torch.randn(2, len(responses), width, generator=generator)

    lengths, _ = response_lengths(torch.tensor(reference.padded(responses, width, pad)), [EOS])
    mask = torch.arange(width) < lengths[:, None]
    rewards = token_rewards(torch.tensor(scores), kl_coef * kl, mask)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)

    rows = []
    for response, score, kl_row, value_row in zip(responses, scores, kl.tolist(), values.tolist(), strict=True):
        real = len(response)
        row_rewards = reference.token_rewards(score, kl_row[:real], kl_coef)
        rows.append(reference.advantages(row_rewards, value_row[:real], gamma, lam))
    expected = torch.tensor(reference.padded(rows, width))
    assert_close(advantages, expected, atol=1e-5, rtol=1e-5)
    assert_close(returns, expected + values * mask, atol=1e-5, rtol=1e-5)

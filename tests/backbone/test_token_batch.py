import pytest
import torch

from lorarlhf.backbone.batch import TokenBatch, with_end

PROMPTS = [[5, 6, 7], [0, 9], [4], [1, 1, 1, 1]]
RESPONSES = [[2, 0], [], [11, 12, 13, 0, 2], [3]]


@pytest.fixture
def sequences() -> TokenBatch:
    return TokenBatch.from_lists(PROMPTS, RESPONSES)


def rows(sequences: TokenBatch) -> list[tuple[list[int], list[int]]]:
    tokens = sequences.tokens.tolist()
    found = []
    for i in range(len(sequences)):
        start, length = int(sequences.prompt_lengths[i]), int(sequences.lengths[i])
        found.append((tokens[i][:start], tokens[i][start:length]))
    return found


def test_lists_come_back(sequences):
    assert len(sequences) == 4
    assert sequences.tokens.shape == (4, 6)
    assert sequences.tokens.dtype == torch.long
    assert sequences.lengths.tolist() == [5, 2, 6, 5]
    assert rows(sequences) == list(zip(PROMPTS, RESPONSES, strict=True))
    assert sequences.responses() == RESPONSES


def test_the_response_mask_goes_by_lengths_not_ids(sequences):
    assert sequences.response_mask.int().tolist() == [
        [1, 1, 0, 0, 0],  # the second token is 0, as padding is
        [0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0],
    ]


def test_selected_rows_are_cut_to_the_longest(sequences):
    chosen = sequences.select(torch.tensor([3, 1]))
    assert chosen.tokens.shape == (2, 5)
    assert chosen.response_mask.shape == (2, 1)
    assert rows(chosen) == [(PROMPTS[3], RESPONSES[3]), (PROMPTS[1], RESPONSES[1])]
    assert rows(sequences.select(torch.tensor([True, False, True, False]))) == [
        (PROMPTS[0], RESPONSES[0]),
        (PROMPTS[2], RESPONSES[2]),
    ]


@pytest.mark.parametrize("budget", [1, 5, 6, 11, 12, 18, 24, 1000])
def test_micro_batches_hold_every_row_once_within_the_budget(sequences, budget):
    groups = [group.tolist() for group in sequences.micro_batches(budget)]
    assert sorted(row for group in groups for row in group) == [0, 1, 2, 3]
    for group in groups:
        assert len(group) == 1 or sequences.select(torch.tensor(group)).tokens.numel() <= budget
    lengths = [max(sequences.lengths[group].tolist()) for group in groups]
    assert lengths == sorted(lengths, reverse=True)  # similar lengths together: little padding
    for group in groups[:-1]:  # and no group ends that had room
        assert (len(group) + 1) * int(sequences.lengths[group].max()) > budget


def test_nothing_at_all():
    empty = TokenBatch(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0).long())
    assert len(empty) == 0
    assert empty.response_mask.shape == (0, 0)
    assert list(empty.micro_batches(10)) == []
    assert empty.select(torch.zeros(0, dtype=torch.long)).tokens.shape == (0, 0)


def test_moving_keeps_every_field(sequences):
    moved = sequences.to(torch.device("meta"))
    assert {t.device.type for t in (moved.tokens, moved.prompt_lengths, moved.response_lengths)} == {"meta"}


def test_responses_get_the_one_end(sequences):
    ended = with_end(sequences, 8)
    whole = [[*response[:-1], 8] if response else [] for response in RESPONSES]
    assert rows(ended) == list(zip(PROMPTS, whole, strict=True))
    assert rows(sequences) == list(zip(PROMPTS, RESPONSES, strict=True)), "what was sampled stays"

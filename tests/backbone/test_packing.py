"""Rows behind one prompt: what each computes, and its gradients, are those of rows by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import FAMILIES, ROLES, SHAPE, VOCABULARY, randomise
from torch import Tensor
from torch.testing import assert_close

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.grouping import grouped, side_by_side
from lorarlhf.backbone.packing import Packing
from lorarlhf.backbone.shared import SharedBackbone

PROMPTS = (7, 3, 5)  # tokens of each prompt
RESPONSES = ((6, 2, 9), (4,), (1, 8))  # tokens of the responses to each
GROUPS = [2, 0, 0, 1, 2, 0]  # of the rows, whose order is not that of their groups


def some_sequences() -> TokenBatch:
    """Six rows of three prompts, a longest one of 16."""
    draw = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=draw).tolist()

    prompts = [ids(length) for length in PROMPTS]
    responses = [[ids(length) for length in lengths] for lengths in RESPONSES]
    return TokenBatch.from_lists([prompts[g] for g in GROUPS], [responses[g].pop(0) for g in GROUPS])


def in_groups(sequences: TokenBatch) -> TokenBatch:
    return replace(sequences, groups=torch.tensor(GROUPS))


WINDOWED = {"mistral", "gemma2", "gemma3_text", "phi3"}  # of 4 tokens in the tests


@pytest.fixture
def halves(load_tiny):
    """Every role with an adapter, reward and critic on the upper of two layers."""

    def load(family: str, **options) -> SharedBackbone:
        backbone = load_tiny(family, **options)
        upper = SHAPE.model_copy(update={"top_layers": 0.5})
        for role in ROLES:
            backbone.attach(role, upper if role in ("reward", "critic") else SHAPE)
        randomise(backbone, *ROLES)
        backbone.train_roles("policy", "critic")
        return backbone

    return load


def outputs(backbone: SharedBackbone, sequences: TokenBatch) -> list[Tensor]:
    logprobs, entropy = backbone.logprobs("policy", sequences, 0.7)
    below = backbone.trunk_states(sequences, 1)
    return [
        logprobs,
        entropy,
        backbone.scores(sequences),
        backbone.scores(sequences, below),
        backbone.values(sequences),
        backbone.values(sequences, below),
    ]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WINDOWED))
def test_outputs_and_gradients_are_those_of_rows_by_themselves(halves, family):
    backbone, sequences = halves(family), some_sequences()
    assert backbone.packs_prompts

    def run(batch: TokenBatch) -> list[Tensor]:
        backbone.zero_grad()
        results = outputs(backbone, batch)
        sum((i + 1) * (x * torch.linspace(-1, 2, x.numel()).view_as(x)).sum() for i, x in enumerate(results)).backward()
        return [*(x.detach() for x in results), *(p.grad for p in backbone.parameters() if p.grad is not None)]

    for packed, expected in zip(run(in_groups(sequences)), run(sequences), strict=True):
        assert_close(packed, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_either_attention_and_with_checkpointing(halves, attention, checkpointing):
    backbone, sequences = halves("llama", attn_implementation=attention), some_sequences()
    if checkpointing:
        backbone.enable_gradient_checkpointing()
    backbone.train()

    def run(batch: TokenBatch) -> list[Tensor]:
        backbone.zero_grad()
        backbone.logprobs("policy", batch)[0].square().sum().backward()
        return [p.grad for p in backbone.role_parameters("policy")]

    for packed, expected in zip(run(in_groups(sequences)), run(sequences), strict=True):
        assert_close(packed, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("family", sorted(WINDOWED))
def test_layers_that_look_back_less_far_are_not_packed(load_tiny, family):
    backbone = load_tiny(family)
    assert not backbone.packs_prompts  # seven tokens show it, at a window of four
    assert grouped(backbone, some_sequences()).groups is None


@pytest.mark.parametrize("family", ["falcon_h1", "gpt_neo", "mpt"])
def test_families_that_do_more_than_mask_and_positions_say(load_tiny, family):
    """A state from token to token, a local window, biases by distance: in bfloat16 too, that is no rounding."""
    assert not load_tiny(family, compute_dtype="bfloat16").packs_prompts


def test_layers_that_choose_the_tokens_they_look_at_have_a_window(load_tiny):
    """DeepSeek's sparse attention takes all of the past only where that is no more than it may take."""
    backbone, sequences = load_tiny("glm_moe_dsa", quantization="none"), some_sequences()
    assert backbone.attention_window == 8
    assert grouped(backbone, sequences).groups is None


def test_a_window_that_a_packed_row_exceeds(load_tiny):
    backbone = load_tiny("mistral")
    backbone.packs_prompts = True  # as with a window that the few tokens of the check do not reach
    widest = max(prompt + sum(lengths) for prompt, lengths in zip(PROMPTS, RESPONSES, strict=True))
    for window, groups in ((widest, 3), (widest - 1, 4)):  # the third response then begins a row
        backbone.causal_lm.config.sliding_window = window
        assert len(set(grouped(backbone, some_sequences()).groups.tolist())) == groups


def test_a_row_that_exceeds_the_window_by_itself_keeps_it(load_tiny):
    """A packed pass has one mask for all of its rows and layers, which knows no window."""
    backbone, sequences = load_tiny("mistral"), some_sequences()
    backbone.attach("reward", SHAPE)
    backbone.packs_prompts = True
    backbone.causal_lm.config.sliding_window = int(sequences.lengths.max()) - 1
    expected = backbone.scores(sequences)
    assert_close(backbone.scores(grouped(backbone, sequences)), expected)
    assert_close(backbone.scores(side_by_side(backbone, sequences.lists())), expected)


def test_rows_are_grouped_by_their_prompts_where_that_is_less_work(load_tiny):
    backbone, sequences = load_tiny("llama"), some_sequences()
    groups = grouped(backbone, sequences).groups.tolist()
    assert [groups.index(group) for group in groups] == [GROUPS.index(group) for group in GROUPS]
    alone = TokenBatch.from_lists([[3, 4], [3, 5]], [[6], [6]])
    assert grouped(backbone, alone).groups is None
    long_responses = TokenBatch.from_lists([[3]] * 8, [[4] * 400] * 8)  # a mask of 3200 x 3200 to spare seven tokens
    assert grouped(backbone, long_responses).groups is None
    many = TokenBatch.from_lists([[3] * 40] * 99, [[4] * 10] * 99)
    groups = grouped(backbone, many).groups.tolist()
    assert len(set(groups)) == 2  # a row ends where its mask costs more than it spares


def test_where_the_tokens_stand():
    sequences = in_groups(some_sequences())
    packing = Packing.of(sequences)
    assert packing.sources.shape == (3, 24)  # 7 + 6 + 2 + 9, already a multiple of 8
    inputs = packing.inputs(sequences, torch.float32)
    flat = inputs["input_ids"].flatten()
    for row, places in zip(sequences.lists(), packing.places.tolist(), strict=True):
        assert flat[places[: len(row)]].tolist() == row
        assert inputs["position_ids"].flatten()[places[: len(row)]].tolist() == list(range(len(row)))
        seen = inputs["attention_mask"].eq(0).flatten(0, 2)[places[: len(row)]]
        assert seen.sum(1).tolist() == list(range(1, len(row) + 1))  # each token sees those before it and itself


def test_only_the_columns_that_are_asked_for_are_unpacked(halves):
    """Whole rows, each with its prompt again, would take more than the packed pass that the budget allows for."""
    backbone, sequences = halves("llama"), some_sequences()
    columns = torch.stack([sequences.lengths - 1, torch.zeros_like(sequences.lengths)], 1)
    expected = backbone.hidden_states("policy", sequences)[torch.arange(len(sequences)).unsqueeze(1), columns]
    for batch in (sequences, in_groups(sequences)):
        found = backbone.hidden_states("policy", batch, columns=columns)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_counts_what_its_single_pass_computes():
    sequences = in_groups(some_sequences())
    assert sequences.computed_tokens == 3 * (7 + 6 + 2 + 9)
    assert len(list(sequences.micro_batches(sequences.computed_tokens))) == 1
    assert len(list(sequences.micro_batches(sequences.computed_tokens - 1))) > 1
    assert some_sequences().computed_tokens == 6 * 16


def test_a_batch_counts_its_padding():
    sequences = some_sequences()
    assert sequences.padding_tokens == 6 * 16 - sum(map(len, sequences.lists()))
    packed = in_groups(sequences)
    prompts = {GROUPS[row]: length for row, length in enumerate(sequences.prompt_lengths.tolist())}
    needed = sum(prompts.values()) + int(sequences.response_lengths.sum())
    assert packed.padding_tokens == packed.computed_tokens - needed


def test_micro_batches_count_a_prompt_once_and_split_groups_only_where_they_must():
    sequences = in_groups(some_sequences())
    whole = [rows.tolist() for rows in sequences.micro_batches(24)]
    assert sorted(GROUPS[rows[0]] for rows in whole if len({GROUPS[row] for row in rows}) == 1)[0] == 0
    assert [1, 2, 5] in [sorted(rows) for rows in whole]  # 7 + 6 + 2 + 9
    split = [sorted(rows.tolist()) for rows in sequences.micro_batches(16)]
    assert sorted(row for rows in split for row in rows) == list(range(6))
    for rows in split:
        part = sequences.select(torch.tensor(rows))
        widest = int((Packing.of(part).branches >= 0).sum(1).max())
        assert len(rows) == 1 or len(set(part.groups.tolist())) * widest <= 16


def test_scores_of_sequences_that_begin_alike(load_tiny):
    backbone = load_tiny("llama")
    backbone.attach("reward", SHAPE)
    randomise(backbone, "reward")
    draw = torch.Generator().manual_seed(2)
    start = torch.randint(3, VOCABULARY, (9,), generator=draw).tolist()
    rows = [[*start, 5, 6], [7, 8, 9], [*start, 5, 7, 8], start, [*start[:4], 30, 31], [7, 8, 9], [4]]
    together = side_by_side(backbone, rows)
    assert together.lists() == rows
    assert len(set(together.groups[[0, 2, 3]].tolist())) == len(set(together.groups[[1, 5]].tolist())) == 1
    assert len(set(together.groups.tolist())) < len(rows) - 2
    for members in (together.groups == group for group in set(together.groups.tolist())):
        (common,) = set(together.prompt_lengths[members].tolist())
        assert len({tuple(row[:common]) for row, member in zip(rows, members.tolist(), strict=True) if member}) == 1
    alone = torch.stack([backbone.scores(TokenBatch.from_lists([row], [[]]))[0] for row in rows])
    assert_close(backbone.scores(together), alone, rtol=1e-4, atol=1e-5)
    backbone.packs_prompts = False
    assert side_by_side(backbone, rows).groups is None

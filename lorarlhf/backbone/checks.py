"""What is taken for granted of a model, tried on a few tokens when it is loaded.

Families differ in what they do around their head, in what their layers return and share, and in what they keep between
tokens. No list could say which are sound: a model's own forward pass can.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorarlhf.backbone.adapters import BASE
from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.errors import UserError, first_line

if TYPE_CHECKING:
    from lorarlhf.backbone.shared import SharedBackbone

logger = logging.getLogger(__name__)
# What is taken for rounding of states, as a share. In bfloat16 a model that does something else was off by 0.09, sound
# ones by nothing on a CPU; int8 rounds by what else is in a batch, by up to 0.15.
FLOAT32_ROUNDING, BFLOAT16_ROUNDING, INT8_ROUNDING = 0.01, 0.08, 0.2


@torch.no_grad()
def check_model(backbone: SharedBackbone) -> None:
    """Compare what this package computes by pieces with the model's own whole pass.

    Says so where reward model and critic cannot share the layers below them (see `trunk.py`), and does without.

    Raises:
        UserError: log-probabilities or samples would not be the model's.
    """
    sequences = _sequences(backbone)
    try:
        whole = backbone.hidden_states(BASE, sequences)
    except Exception as error:  # of any kind: quantising alone can break what a family does with its weights
        raise _refusal(backbone, f"its forward pass fails ({_quoted(error)})") from error
    read = torch.cat([row[:length] for row, length in zip(whole, sequences.lengths.tolist(), strict=True)])
    if not read.isfinite().all():
        raise UserError(
            f"model.name: {_family(backbone)} computes NaN or infinity from a few tokens: its weights are damaged, or "
            "too large for model.compute_dtype; get them again, or set model.compute_dtype to float32"
        )
    _check_logits(backbone, sequences, whole)
    _check_causal(backbone, sequences, whole)
    _check_cache(backbone, sequences, whole)
    reason = sharing_fault(backbone)
    if reason:
        backbone.shares_trunk = False
        logger.warning(
            "%s cannot go on from the middle of a pass (%s): reward model and critic each compute all layers, which is "
            "slower",
            _family(backbone),
            reason,
        )
    reason = packing_fault(backbone)
    if reason:
        backbone.packs_prompts = False
        logger.info("%s computes the prompt of each response anew (%s)", _family(backbone), reason)


@torch.no_grad()
def packing_fault(backbone: SharedBackbone) -> str | None:
    """Why responses cannot be computed behind one prompt, if they cannot: families read masks in their ways."""
    sequences = _sequences(backbone)
    prompt, (first, second) = sequences.lists()[0][:4], [row[-3:] for row in sequences.lists()]
    # A long one before it: what counts tokens by where they stand in a row is then far off.
    alike = TokenBatch.from_lists([prompt] * 2, [first * 12, second]).to(sequences.tokens.device)
    by_row = backbone.hidden_states(BASE, alike)
    try:
        packed = backbone.hidden_states(BASE, replace(alike, groups=torch.zeros_like(alike.lengths)))
    except Exception as error:  # of any kind: a family may take no mask, or no positions
        return _quoted(error)
    place = slice(len(prompt), len(prompt) + len(second))
    # Of the second alone, where a wrong position or mask would show. What seeps into it from the first through a few
    # layers moves it little, and to take rounding for that costs nothing but time.
    differ = _differ(backbone, packed[1:, place], by_row[1:, place], rounding=0.05)
    return "the states differ" if differ else None


@torch.no_grad()
def sharing_fault(backbone: SharedBackbone) -> str | None:
    """Why a pass cannot be taken up from the middle, if it cannot. On the meta device, it is enough that it runs."""
    sequences = _sequences(backbone)
    whole = backbone.hidden_states(BASE, sequences)
    for layer in {len(backbone.layers) // 2, len(backbone.layers) - 1}:
        try:
            resumed = backbone.hidden_states(BASE, sequences, backbone.trunk_states(sequences, layer))
        except Exception as error:  # of any kind: a layer meets what the one below it would not have returned
            return _quoted(error)
        if not whole.is_meta and _differ(backbone, resumed, whole, sequences):
            return "the states differ"
    return None


def _check_logits(backbone: SharedBackbone, sequences: TokenBatch, whole: Tensor) -> None:
    if whole.shape[-1] != backbone.reward_head.in_features:
        raise _refusal(backbone, "its head reads states of another width than its last layer gives")
    with backbone.autocast():
        expected = backbone.causal_lm(input_ids=sequences.tokens, use_cache=False).logits
    if _differ(backbone, backbone.logits(whole), expected, sequences):
        raise _refusal(backbone, "it computes its logits in a way lorarlhf does not know")


def _check_causal(backbone: SharedBackbone, sequences: TokenBatch, whole: Tensor) -> None:
    prompts = TokenBatch(sequences.tokens, sequences.prompt_lengths, torch.zeros_like(sequences.response_lengths))
    tokens = sequences.tokens.clone()
    tokens[:, int(prompts.lengths.max()) :] = tokens[:, :1]
    other = backbone.hidden_states(BASE, TokenBatch(tokens, prompts.prompt_lengths, prompts.response_lengths))
    if _differ(backbone, other, whole, prompts):
        raise _refusal(backbone, "its tokens see those that come after them (an encoder)")


def _check_cache(backbone: SharedBackbone, sequences: TokenBatch, whole: Tensor) -> None:
    try:
        by_token = _decoded(backbone, sequences)
    except Exception as error:  # of any kind: a family's own cache is asked for what it may not have
        reason = f"it cannot be sampled from token by token ({_quoted(error)})"
        raise _refusal(backbone, reason) from error
    rows = torch.arange(2, device=whole.device).unsqueeze(1)
    places = sequences.prompt_lengths.unsqueeze(1) + torch.arange(3, device=whole.device)
    if _differ(backbone, by_token[:, :2], whole[rows, places[:, :2]]) or _differ(
        backbone, by_token[1:, 2:], whole[1:, places[1, 2:]]
    ):
        raise _refusal(backbone, "token by token, beside a padded prompt, it computes something else than in one pass")


def _decoded(backbone: SharedBackbone, sequences: TokenBatch) -> Tensor:
    """[2, 3, H] states of the responses as sampling would come to them; the shorter prompt alone reaches the last."""
    device, width = sequences.tokens.device, int(sequences.prompt_lengths.max())
    pad = width - sequences.prompt_lengths
    columns = torch.arange(width + 3, device=device) - pad.unsqueeze(1)
    tokens = sequences.tokens.gather(1, columns.clamp(min=0))
    attention, positions = (columns >= 0).long(), columns.clamp(min=0)
    cache = backbone.growing_cache()
    states = []
    with backbone.role(BASE), backbone.autocast():
        for start, end in ((0, width), (width, width + 1), (width + 1, width + 2)):
            hidden = backbone.cached_states(tokens[:, start:end], attention[:, :end], positions[:, start:end], cache)
            states.append(hidden[:, -1])
        backbone.keep_rows(cache, torch.tensor([1], device=device))
        hidden = backbone.cached_states(tokens[1:, -1:], attention[1:], positions[1:, -1:], cache)
    states.append(torch.cat([torch.zeros_like(hidden[:, -1]), hidden[:, -1]]))
    return torch.stack(states[1:], 1)


def _sequences(backbone: SharedBackbone) -> TokenBatch:
    """Prompts of 4 and 2 tokens with responses of 3: rare ones, as special tokens are the first or the last."""
    vocabulary: int = backbone.causal_lm.config.get_text_config().vocab_size
    ids = [vocabulary // 2 + i % (vocabulary // 4) for i in range(12)]
    device = next(backbone.causal_lm.parameters()).device
    return TokenBatch.from_lists([ids[:4], ids[4:6]], [ids[6:9], ids[9:]]).to(device)


def _differ(
    backbone: SharedBackbone,
    ours: Tensor,
    expected: Tensor,
    sequences: TokenBatch | None = None,
    rounding: float | None = None,
) -> bool:
    """Whether half of a row's tokens are off by more than rounding. Only half: in a mixture, rounding moves a few far.

    Args:
        ours, expected: [B, L, n], of which what lies beyond the lengths of `sequences` does not count.
        rounding: what is taken for it where the model does not compute in float32; None takes what is usual.
    """
    error = (ours.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    lengths: list[int] = sequences.lengths.tolist() if sequences else [error.shape[1]] * len(error)
    medians = torch.stack([row[:length].median() for row, length in zip(error, lengths, strict=True)])
    usual = INT8_ROUNDING if getattr(backbone.causal_lm, "is_loaded_in_8bit", False) else BFLOAT16_ROUNDING
    tolerance = FLOAT32_ROUNDING if backbone.is_exact else rounding or usual
    return not bool((medians < tolerance).all())  # which NaN is not


def _quoted(error: Exception) -> str:
    kind, said = type(error).__name__, first_line(error)
    return said if said == kind else f"{kind}: {said}"


def _refusal(backbone: SharedBackbone, reason: str) -> UserError:
    return UserError(f"model.name: {_family(backbone)} cannot be trained: {reason}; choose another model")


def _family(backbone: SharedBackbone) -> str:
    return type(backbone.causal_lm).__name__

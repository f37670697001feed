"""NaN and infinity: found before they reach the weights that are kept, and told with role and text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError
from lorarlhf.run import write_json

FILE = "not_finite.json"  # in the stage's folder: the texts


class NotFinite(ArithmeticError):  # noqa: N818  # named for what was found
    """Some number is NaN or infinite.

    Args:
        what: the number, of which role.
        texts: token ids of what it was computed from.
    """

    def __init__(self, what: str, role: str, texts: Sequence[Sequence[int]] = ()) -> None:
        super().__init__(f"NaN or infinity in {what} of the {role}")
        self.what = what
        self.role = role
        self.texts = texts


@torch.no_grad()
def check_role(backbone: SharedBackbone, role: str, ids: Sequence[int]) -> None:
    """Raise NotFinite if a role computes NaN or infinity of a text of two tokens or more.

    Steps that are far too large leave weights that are finite, and of which nothing finite can be computed.
    """
    sequences = TokenBatch.from_lists([list(ids[:-1])], [list(ids[-1:])]).to(backbone.device)
    if role == "reward":
        numbers = backbone.scores(sequences)
    else:
        numbers = backbone.values(sequences) if role == "critic" else backbone.logprobs(role, sequences)[0]
    if not numbers.isfinite().all():
        raise NotFinite("what it computes after the last step", role, [ids])


def refusal(fault: NotFinite, tokenizer: PreTrainedTokenizerBase, folder: Path, when: str) -> UserError:
    """One line on it; the texts go to a file.

    Args:
        folder: the stage's.
        when: iteration or step.
    """
    path = folder / FILE
    texts = [tokenizer.decode(list(ids)) for ids in fault.texts]
    write_json(path, {"what": fault.what, "role": fault.role, "when": when, "texts": texts})
    return UserError(
        f"{folder}: {fault} {when}, with the texts in {path}; what was saved before stays: lower "
        f"{folder.name}.learning_rate, and begin again or --resume with what was learnt until then"
    )

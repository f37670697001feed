"""What becomes of a tiny model of each family: the table in docs/families.md, which this file writes anew when run.

PYTHONPATH=. python tests/family_outcomes.py
"""

from __future__ import annotations

import html
import logging
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from every_family import EVERY_FAMILY, NOT_TRIED
from tiny_models import attach_all, make_model, mixed_sequences
from torch.testing import assert_close

from lorarlhf.backbone.batch import TokenBatch
from lorarlhf.backbone.grouping import grouped
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.errors import UserError
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import sample_responses
from lorarlhf.recipe.sections import ModelConfig

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
ROW = re.compile(r"^\| (.+) \| ((?:`[^`]+`(?:, )?)+) \|$", re.MULTILINE)
KINDS = ("works", "refused", "not tried")
PROMPTS = [[5, 6, 7], [9], [20, 21, 22, 23, 24]]


def outcome(family: str, folder: Path) -> str:
    """Load it, take a step of policy and critic, sample from it and score what was sampled.

    Args:
        folder: an empty one, for the model.

    Returns:
        "works", "works without sharing", "refused: ..." with the reason as a user reads it, or "not tried: ...".
    """
    if family in NOT_TRIED:
        return f"not tried: {NOT_TRIED[family]}"
    try:
        backbone = load_backbone(
            ModelConfig(name=str(make_model(family, folder)), quantization="none", compute_dtype="float32")
        )
    except UserError as error:
        reason = str(error).removeprefix("model.name: ").split(" cannot be trained: ")[-1].split("; choose ")[0]
        return f"refused: {html.escape(reason, quote=False)}"
    attach_all(backbone)
    if backbone.packs_prompts:
        check_packing(backbone)  # before `train`: the router of some mixtures draws noise then
    backbone.train()
    sequences = mixed_sequences()
    (backbone.logprobs("policy", sequences)[0].sum() + backbone.values(sequences).sum()).backward()
    for role in ("policy", "critic"):
        assert any(p.grad is not None and p.grad.any() for p in backbone.role_parameters(role)), role
    rollout = sample_responses(backbone.eval(), PROMPTS, uniform_table(len(PROMPTS), 6, 0), 1.0)
    with torch.no_grad():
        logprobs, _ = backbone.logprobs("policy", rollout.sequences)
    assert_close(rollout.logprobs, logprobs, rtol=1e-2, atol=1e-2)
    return "works" if backbone.shares_trunk else "works without sharing"


@torch.no_grad()
def check_packing(backbone: SharedBackbone) -> None:
    """Raise AssertionError if responses behind one prompt are not what they are by themselves."""
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[2]]
    rows = TokenBatch.from_lists(prompts, [[8, 9, 10, 11] * 4, [12, 13], [14, 15, 16], [17, 18]])
    packed = grouped(backbone, rows)
    assert packed.groups is not None or backbone.attention_window is not None
    for of in (lambda batch: backbone.logprobs("policy", batch)[0], backbone.values, backbone.scores):
        assert_close(of(packed), of(rows), rtol=1e-3, atol=1e-3)


def table() -> dict[str, str]:
    """The outcomes as the page has them, by family."""
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    return {family: said for said, families in rows for family in re.findall(r"`([^`]+)`", families)}


def write(outcomes: dict[str, str]) -> None:
    kinds = {kind: sum(said.startswith(kind) for said in outcomes.values()) for kind in KINDS}
    summary = f"Of {len(outcomes)} families of transformers {transformers.__version__}, {kinds['works']} work, "
    summary += f"{kinds['refused']} are refused, {kinds['not tried']} are not tried."
    text = PAGE.read_text(encoding="utf-8").split("\n| what")[0]
    head = re.sub(r"^Of \d+ families.*$", summary, text, flags=re.MULTILINE)
    families: dict[str, list[str]] = defaultdict(list)
    for family in sorted(outcomes):
        families[outcomes[family]].append(f"`{family}`")

    def place(said: str) -> tuple[int, int, str]:
        return [said.startswith(kind) for kind in KINDS].index(True), -len(families[said]), said

    rows = [f"| {said} | {', '.join(families[said])} |" for said in sorted(families, key=place)]
    PAGE.write_text("\n".join([head, "| what becomes of it | families |", "|---|---|", *rows, ""]), encoding="utf-8")


def main() -> None:
    logging.disable()
    outcomes = {}
    for family in EVERY_FAMILY:
        with tempfile.TemporaryDirectory() as folder:
            outcomes[family] = outcome(family, Path(folder))
        print(family, outcomes[family], sep=": ", flush=True)
    write(outcomes)


if __name__ == "__main__":
    main()

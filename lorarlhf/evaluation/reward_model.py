"""Scores of a reward model: over held-out data, and of whatever Python code asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorarlhf.backbone.budget import TokenBudget, in_micro_batches, tokens_a_pass
from lorarlhf.backbone.grouping import side_by_side
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.formats.values import messages
from lorarlhf.data.rows import BadRow, Demonstration, Prompt, in_turns, is_text
from lorarlhf.data.special_tokens import SpecialTokens
from lorarlhf.data.tokenize import encode_completion
from lorarlhf.data.tokenizer import wraps_text
from lorarlhf.errors import UserError
from lorarlhf.run import Run

ROWS_AT_ONCE = 1000  # in memory as lists; what they come from may lie on disk


@torch.no_grad()
def score_tokens(
    backbone: SharedBackbone,
    rows: Sequence[Sequence[int]],
    advance: Callable[[int], None] | None = None,
    token_budget: int | None = None,
) -> Tensor:
    """[N] the reward role's score of each token sequence, on the CPU; neighbours may begin alike at little cost.

    Args:
        token_budget: what to begin with, `tokens_a_pass` by default; less at a time once memory has run out.

    Raises:
        UserError: a single row does not fit.
    """
    backbone.eval()
    token_budget = token_budget or tokens_a_pass(backbone.device)
    budget = TokenBudget("scoring", token_budget, "lower data.max_length or take a smaller model")
    scores = torch.empty(len(rows))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        sequences = side_by_side(backbone, part)
        for group in sequences.micro_batches(token_budget):
            (column,) = in_micro_batches(
                sequences.select(group).to(backbone.device),
                budget,
                lambda micro, _: (backbone.scores(micro).unsqueeze(1),),
                (1,),
            )
            scores[start + group] = column[:, 0].cpu()
            if advance:
                advance(len(group))
    return scores


class RewardModel:
    """Scores responses to prompts.

    Args:
        backbone: with an adapter in the reward role.
        wraps_text: put plain text into the chat template, as training did if it says so (`data.wrap_text`).
        special_tokens: what text is that spells one, as it was in training (`data.special_tokens`).
    """

    def __init__(
        self, backbone: SharedBackbone, wraps_text: bool = False, special_tokens: SpecialTokens = "escape"
    ) -> None:
        self.backbone = backbone
        self.wraps_text = wraps_text
        self.special_tokens = special_tokens

    @classmethod
    def from_run(cls, run: Run | Path | str, allow_other_base: bool = False) -> RewardModel:
        """What the reward stage of a run has left, on the base model quantised as it was in training.

        Args:
            allow_other_base: also where the model of that name is no longer the one it was trained on.

        Raises:
            UserError: there is no such run, its reward stage has not finished, or its base is another one.
        """
        run = Run(run)
        recipe, adapter = run.read_recipe(stage="reward", runs_functions=False), run.adapter("reward")
        backbone = load_backbone(recipe.model, recipe.data)
        backbone.load_role("reward", adapter, allow_other_base=allow_other_base)
        return cls(backbone, wraps_text(recipe.data, backbone.tokenizer), recipe.data.special_tokens)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """How good each response is to its prompt. Only scores of one model can be compared.

        Args:
            prompts: as in data, messages (`[{"role": "user", "content": "Hello"}]`) or text, and read as in training.
            responses: one to each prompt.

        Raises:
            UserError: the two are not lists of the same length, or one of them holds something else.
        """
        if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
            raise UserError("score: give a list of prompts and a list of as many responses")
        pairs = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if not isinstance(response, str):
                raise UserError(f"score: responses[{i}] is a {type(response).__name__}, not text")
            try:
                asked = prompt if isinstance(prompt, str) else messages({"prompt": prompt}, "prompt")
            except BadRow as bad:
                raise UserError(f"score: prompts[{i}]: {bad}") from None
            pairs.append(Demonstration(asked, response))
        return self.scores(pairs)

    def scores(self, rows: Sequence[Demonstration]) -> list[float]:
        """The same of canonical rows, which are not checked."""
        scores: list[float] = score_tokens(self.backbone, [self._encoded(row) for row in rows]).tolist()
        return scores

    def _encoded(self, said: Demonstration) -> list[int]:
        said = in_turns(said) if self.wraps_text and is_text(said) else said
        prompt_ids, response_ids = encode_completion(
            self.backbone.tokenizer, said.prompt, said.completion, self.backbone.end_id, self.special_tokens
        )
        return prompt_ids + response_ids

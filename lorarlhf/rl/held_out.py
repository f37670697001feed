"""The policy on prompts it is not trained on, as it goes on; the best one is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.adapters import written_adapter
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.generation.draw import uniform_table
from lorarlhf.generation.sample import ResponseSampler, response_texts
from lorarlhf.recipe.sections import PPOConfig
from lorarlhf.rl.experience import ScoredRollout
from lorarlhf.rl.process_group import ProcessGroup
from lorarlhf.rl.score import RolloutScorer, ScoringPasses, not_finite
from lorarlhf.rl.state import Evaluation, TrainingState

SAMPLES = "samples.jsonl"


class HeldOut:
    """Samples the policy on the same held-out prompts with the same random numbers, time after time.

    Args:
        prompts: those of all processes.
        folder: of the stage: the best adapter goes to `best/`, responses to `samples.jsonl`.
        seed: of the random numbers.
    """

    def __init__(
        self,
        prompts: Sequence[PromptExample],
        sampler: ResponseSampler,
        passes: ScoringPasses,
        reward: RolloutScorer,
        config: PPOConfig,
        folder: Path,
        seed: int,
    ) -> None:
        self.prompts = prompts
        self.sampler = sampler
        self.passes = passes
        self.reward = reward
        self.config = config
        self.folder = folder
        self.uniforms = uniform_table(len(prompts), config.response_length, "held-out", seed)

    def evaluate(self, state: TrainingState, processes: ProcessGroup) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The row to log of the policy as it is, and its samples; it replaces what is in `best/` if it is better.

        Better is by what is trained, shaped score less KL penalty: reward alone would keep a policy that has found what
        fools the reward model.
        """
        rows = processes.share.of(len(self.prompts))
        with processes.failing_together():
            responses = self._responses([self.prompts[row] for row in rows], self.uniforms[rows.start : rows.stop])
        responses = processes.gather(responses)
        n = len(responses)
        kl = sum(row["kl"] for row in responses) / n
        row = {
            "eval_reward": torch.tensor([row["reward"] for row in responses]).mean().item(),
            "eval_kl": kl,
            "eval_response_length": sum(row["length"] for row in responses) / n,
            "eval_finished": sum(row["finished"] for row in responses) / n,
        }
        evaluation = Evaluation(
            row={"iteration": state.iteration, **row},
            scores=[row["reward"] for row in responses],
            finished=[row["finished"] for row in responses],
            kl=kl,
        )
        if state.first is None:
            state.first = evaluation
        is_best = state.judge(self.config, evaluation)
        samples = [
            {"iteration": state.iteration, **{key: response[key] for key in ("prompt", "response", "reward")}}
            for response in responses
        ]
        if processes.is_main:
            if is_best:
                with written_adapter(self.folder / "best") as part:
                    self.sampler.backbone.save_role("policy", part)
            self._write_samples(samples)
        return evaluation.row, samples

    @torch.no_grad()
    def _responses(self, prompts: Sequence[PromptExample], uniforms: torch.Tensor) -> list[dict[str, Any]]:
        if not prompts:  # there are fewer than processes
            return []
        rollout = self.sampler.sample([example.ids for example in prompts], uniforms)
        logprobs, entropy = self.passes.logprobs("policy", rollout.sequences)
        ref_logprobs, trunk = self.passes.reference(rollout.sequences)
        scores = self.reward(rollout, prompts, trunk)
        scored = ScoredRollout(rollout, scores, logprobs, entropy, ref_logprobs)
        if fault := not_finite(scored):
            raise fault
        columns = {
            "prompt": [example.prompt for example in prompts],
            "response": response_texts(self.sampler.backbone, rollout),
            "reward": scores.tolist(),
            "kl": (logprobs - ref_logprobs).sum(1).tolist(),
            "length": rollout.sequences.response_lengths.tolist(),
            "finished": rollout.finished.tolist(),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _write_samples(self, samples: Sequence[dict[str, Any]]) -> None:
        with (self.folder / SAMPLES).open("a", encoding="utf-8", errors="backslashreplace") as file:
            for sample in samples:
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")

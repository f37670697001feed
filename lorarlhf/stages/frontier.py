"""The checkpoints of a PPO run, and best-of-n, on held-out prompts: reward and judge's reward over KL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lorarlhf.backbone.load import load_backbone
from lorarlhf.data.examples import Loaded
from lorarlhf.data.rows import Prompt, PromptRow
from lorarlhf.data.tokenized import read_by_model
from lorarlhf.errors import UserError
from lorarlhf.evaluation.frontier import Checkpoint, checkpoint_figures, figures, find_turn, turn_figures
from lorarlhf.evaluation.judge import ScoringJudge
from lorarlhf.evaluation.policy import Answers, answer
from lorarlhf.evaluation.report import counting
from lorarlhf.intervals import mean
from lorarlhf.manifest import whole_checkpoints
from lorarlhf.memory import free_unused_memory
from lorarlhf.preferences.best_of import best_of_kl, rank_weights
from lorarlhf.recipe.sections import Recipe
from lorarlhf.rl.rewards import RewardFunction, WeightedReward, all_reward_functions
from lorarlhf.run import Run, of_adapter
from lorarlhf.stages.evaluate import held_out_prompts, load_reference_and_reward, reward_scorer

logger = logging.getLogger(__name__)
BEST_OF = 16


@dataclass(frozen=True)
class _Answered:
    """What was responded to N prompts.

    Attributes:
        reference: where the policy started.
        checkpoints: by iteration, the start as 0.
        candidates: so many responses of the start to each prompt, prompt by prompt; None if best-of-n is left out.
    """

    reference: str
    prompts: list[Prompt]
    checkpoints: dict[int, Answers]
    candidates: Answers | None


def measure_frontier(
    run: Run,
    recipe: Recipe,
    console: Console,
    judge: ScoringJudge | None = None,
    best_of: int = BEST_OF,
    reward_functions: Sequence[RewardFunction] = (),
    allow_other_base: bool = False,
) -> dict[str, Any]:
    """What `frontier.json` holds; nothing is written here.

    The start and each checkpoint answer each held-out prompt once, with the same random numbers.

    Args:
        recipe: the run's, with whatever is to be different here.
        console: where progress is shown.
        judge: what the run was not trained against; without one, nothing says where the run is over-optimised.
        best_of: the most responses of which the best is taken; 1 leaves best-of-n out.
        reward_functions: part of the reward, as `train_ppo` was given them.
        allow_other_base: take adapters that say they were trained on another base model.

    Raises:
        UserError: the run has no whole checkpoint or no reward, or no two prompts are held out.
    """
    functions = all_reward_functions(recipe, reward_functions)
    if not functions and not run.has_adapter("reward"):
        raise UserError(f"--frontier: {run.path} has neither a reward adapter nor ppo.reward_functions to measure by")
    folders, passed_over = whole_checkpoints(run.stage("ppo"))
    for line in passed_over:
        logger.warning("%s; passed over", line)
    if not folders:
        raise UserError(
            f"--frontier: {run.stage('ppo')} has no whole checkpoint; train with ppo.save_every and "
            "ppo.save_total_limit=null, which keeps all"
        )
    loaded = held_out_prompts(recipe.data, "ppo", functions)
    answered = _answer(run, recipe, loaded, functions, folders, best_of, console, allow_other_base)
    judged, judged_candidates = _judge(judge, answered)
    checkpoints = [
        Checkpoint(iteration, answers.kls.numpy(), _rewards(answers), None if judged is None else judged[k])
        for k, (iteration, answers) in enumerate(answered.checkpoints.items())
    ]
    turn = None if judged is None else find_turn(np.stack([point.reward for point in checkpoints]), judged)
    return {
        "stage": "ppo",
        "algorithm": recipe.ppo.algorithm,
        **of_adapter(run.stage("ppo")),
        "reference": answered.reference,
        "data": loaded.source,
        "prompts": len(answered.prompts),
        "temperature": recipe.ppo.temperature,
        "response_length": recipe.ppo.response_length,
        "seed": recipe.seed,
        "judge": judge and judge.name,
        "checkpoints": checkpoint_figures(checkpoints),
        "passed_over": passed_over,
        "save_total_limit": recipe.ppo.save_total_limit,
        "best_of": _best_of(answered, judged_candidates),
        "over_optimisation": turn and turn_figures(checkpoints, turn),
    }


def _answer(
    run: Run,
    recipe: Recipe,
    loaded: Loaded[PromptRow],
    functions: Sequence[WeightedReward],
    folders: Sequence[Path],
    best_of: int,
    console: Console,
    allow_other_base: bool,
) -> _Answered:
    """All that is sampled; the backbone is gone afterwards, as the judge may be a model of its own."""
    backbone = load_backbone(recipe.model, recipe.data)
    reference = load_reference_and_reward(backbone, run, "ppo", allow_other_base)
    prompts = read_by_model(loaded, recipe.data, backbone.tokenizer, "test")
    if len(prompts) < 2:
        raise UserError("--frontier: one prompt has no interval; hold out more, or give some with --dataset")
    score, config, seed = reward_scorer(backbone, recipe, functions), recipe.ppo, recipe.seed
    n = best_of if best_of > 1 else 0
    with counting(console, "answered", (1 + len(folders) + n) * len(prompts)) as advance:
        checkpoints = {0: answer(backbone, "reference", prompts, config, seed, score, advance)}
        for folder in folders:
            backbone.load_role("policy", folder / "policy", allow_other_base=allow_other_base)
            iteration = int(folder.name.removeprefix("checkpoint-"))
            checkpoints[iteration] = answer(backbone, "policy", prompts, config, seed, score, advance)
        repeated = [example for example in prompts for _ in range(n)]
        candidates = answer(backbone, "reference", repeated, config, seed, score, advance) if n else None
    return _Answered(reference, [example.prompt for example in prompts], checkpoints, candidates)


def _judge(judge: ScoringJudge | None, answered: _Answered) -> tuple[np.ndarray | None, np.ndarray | None]:
    """[K, N] the judge's reward of K checkpoints' responses, and [N, n] of the candidates."""
    if judge is None:
        return None, None
    free_unused_memory()
    count, prompts = len(answered.prompts), answered.prompts
    texts = [text for answers in answered.checkpoints.values() for text in answers.texts]
    asked = prompts * len(answered.checkpoints)
    candidates = answered.candidates.texts if answered.candidates else []
    n = len(candidates) // count
    scores = np.array(judge.scores([*asked, *(p for p in prompts for _ in range(n))], [*texts, *candidates]))
    return scores[: len(texts)].reshape(-1, count), scores[len(texts) :].reshape(count, n) if n else None


def _best_of(answered: _Answered, judged: np.ndarray | None) -> list[dict[str, Any]]:
    """Best-of-n for n = 2, 4, 8 ... and all candidates, each from all of them."""
    if answered.candidates is None:
        return []
    reward = _rewards(answered.candidates).reshape(len(answered.prompts), -1)
    of = reward.shape[1]
    order = reward.argsort(1, kind="stable")
    rows = []
    for n in sorted({*(2**k for k in range(1, of.bit_length())), of}):
        row = {"n": n, "kl_bound": best_of_kl(n)}
        for name, values in (("reward", reward), ("judge_reward", judged)):
            if values is not None:
                row |= figures(name, mean(np.take_along_axis(values, order, 1) @ rank_weights(n, of)))
        rows.append(row)
    return rows


def _rewards(answers: Answers) -> np.ndarray:
    """[N], in float64: as many digits as means of differences want."""
    assert answers.scores is not None
    return answers.scores.double().numpy()

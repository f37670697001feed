"""The ppo stage: give each role its adapter, train, keep the best policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.backbone.trunk import TrunkStates
from lorarlhf.data.examples import Split, load_prompts
from lorarlhf.data.rows import request_text
from lorarlhf.data.tokenize import PromptExample, tokenize_prompts
from lorarlhf.display import StageDisplay
from lorarlhf.errors import UserError
from lorarlhf.generation.sample import Rollout, response_texts
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.planner.fit import auto_token_budget, check_memory
from lorarlhf.recipe.sections import PPOConfig, Recipe, ScalarLoraOverride
from lorarlhf.recipe.stages import STAGES
from lorarlhf.rl.rewards import function_scores, load_reward_functions
from lorarlhf.rl.score import Passes
from lorarlhf.rl.trainer import IterationDisplay, PPOTrainer, RolloutScorer
from lorarlhf.rl.trl_engine import check_trl, train_with_trl
from lorarlhf.run import Run
from lorarlhf.training.arguments import check_optimizer
from lorarlhf.training.checkpoint import last_checkpoint, move_aside

Engine = Literal["lorarlhf", "trl"]


def train_ppo(
    recipe: Recipe,
    run: Run,
    resume: bool = False,
    reward: str | None = None,
    backbone: SharedBackbone | None = None,
    engine: Engine = "lorarlhf",
) -> dict[str, Any]:
    """Improve the policy against the reward, save its best adapter; return what `summary.json` holds.

    The policy starts from `RUN/sft` if that stage has run, else from the bare base; the reference is where it started.

    Args:
        reward: folder or Hub id of a reward adapter; None takes `RUN/reward`.
        backbone: one that is loaded already. None loads the recipe's model.
        engine: whose loop updates policy and critic. Everything around it is the same.
    """
    start = time.perf_counter()
    config = recipe.ppo
    check_optimizer(config, "ppo")
    if engine == "trl":
        check_trl(config, resume)
    reward_folder = find_reward_adapter(config, run, reward)
    functions = load_reward_functions(config.reward_functions)
    folder = run.stage("ppo")
    checkpoint = last_checkpoint(folder) if resume else None
    has_sft = run.has_adapter("sft")
    if config.micro_batch_tokens == "auto":  # before the model takes its share of the memory that is free
        config = config.model_copy(update={"micro_batch_tokens": auto_token_budget(recipe, reference=has_sft)})
        recipe = recipe.model_copy(update={"ppo": config})
    if backbone is None:
        check_memory("ppo", recipe, reference=has_sft)
        backbone = load_backbone(recipe.model, recipe.data.chat_template)
    prompts, eval_prompts = _prompts(recipe, backbone, "train"), _prompts(recipe, backbone, "test")
    if config.eval_every and not eval_prompts:
        raise UserError(
            "ppo.eval_every: data.test_size 0 leaves no held-out prompts to evaluate on; raise it, set "
            "data.prompts_test, or set ppo.eval_every to 0"
        )
    if engine == "trl" and len(prompts) < config.batch_size:  # it would wait for a full batch for ever
        raise UserError(f"ppo.batch_size: TRL needs as many prompts, and there are {len(prompts)}; lower it")
    torch.manual_seed(recipe.seed)
    attach_roles(backbone, recipe, run, reward_folder)
    if not resume:
        move_aside(folder)
    stage = STAGES["ppo"]
    display = StageDisplay(stage.name, stage.unit, stage.columns, folder, resume)
    trainer = PPOTrainer(
        backbone,
        config,
        prompts,
        eval_prompts,
        response_scorer(backbone, config, functions),
        folder,
        recipe.seed,
        callbacks=[IterationDisplay(display)],
    )
    run.write_recipe(recipe)
    with display:
        if config.eval_every and checkpoint is None:
            trainer.evaluate()
        if engine == "trl":
            train_with_trl(trainer)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.best:
        backbone.load_role("policy", folder / "best")
    backbone.train_roles()
    summary = {
        "engine": engine,
        "iterations": trainer.iteration,
        "reward": trainer.stats["reward"],
        "kl": trainer.stats["kl"],
        "before": trainer.evaluations[0] if trainer.evaluations else None,
        "best": trainer.best,
        "reference": "sft" if run.has_adapter("sft") else "base",
        "train_prompts": len(prompts),
        "eval_prompts": len(trainer.eval_prompts),
        "seconds": time.perf_counter() - start,
        "peak_memory_gb": peak_memory_bytes() / 1e9,
    }
    backbone.save_role("policy", folder)
    backbone.tokenizer.save_pretrained(folder)
    run.write_summary("ppo", summary)
    return summary


def find_reward_adapter(config: PPOConfig, run: Run, reward: str | None) -> Path | None:
    """Folder of the reward adapter; None where Python functions alone give the reward.

    Raises:
        UserError: there is no adapter and nothing in its place.
    """
    if config.reward_model_weight == 0:
        if not config.reward_functions:
            raise UserError("ppo.reward_model_weight is 0 and ppo.reward_functions is empty: nothing gives a reward")
        return None
    if reward is None:
        if run.has_adapter("reward"):
            return run.stage("reward")
        if config.reward_functions:
            return None
        raise UserError(
            f"{run.stage('reward')}: no reward adapter there; run `lorarlhf reward` with the same --output-dir first, "
            "or give one with --reward"
        )
    folder = Path(reward).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(reward, allow_patterns=["adapter_*"]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--reward {reward}: neither a folder nor a Hub id that can be read: {reason}") from error
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"--reward {reward}: no adapter_config.json there; give the folder `lorarlhf reward` wrote")
    return folder


def attach_roles(backbone: SharedBackbone, recipe: Recipe, run: Run, reward_folder: Path | None) -> None:
    """Policy, reference, reward model and critic, each where it starts from; only policy and critic train.

    The critic begins as a copy of the reward model, unless the recipe gives it a shape of its own.
    """
    if run.has_adapter("sft"):
        backbone.load_role("policy", run.stage("sft"))
        backbone.copy_role("policy", "reference")
    else:
        backbone.attach("policy", recipe.lora.for_role("policy"))
    if reward_folder is not None:
        backbone.load_role("reward", reward_folder)
    if reward_folder is not None and recipe.lora.critic == ScalarLoraOverride():
        backbone.copy_role("reward", "critic")
    else:
        backbone.attach("critic", recipe.lora.for_role("critic"))
        backbone.value_head.reset_parameters()  # drawn anew, from the recipe's seed
    backbone.train_roles("policy", "critic")


def _prompts(recipe: Recipe, backbone: SharedBackbone, split: Split) -> list[PromptExample]:
    rows = load_prompts(recipe.data, split).rows
    return tokenize_prompts(rows, backbone.tokenizer, recipe.data.max_prompt_length)[0]


def response_scorer(backbone: SharedBackbone, config: PPOConfig, functions: Sequence[Any]) -> RolloutScorer:
    """Raw score [B] of each response: the reward model's, weighted, plus the functions'."""
    passes = Passes(backbone, config.temperature, config.token_budget)

    @torch.no_grad()
    def score(rollout: Rollout, batch: Sequence[PromptExample], trunk: TrunkStates | None = None) -> Tensor:
        total = torch.zeros(len(batch), device=rollout.sequences.tokens.device)
        if "reward" in backbone.roles and config.reward_model_weight:
            total += config.reward_model_weight * passes.scores(rollout.sequences, trunk)
        if functions:
            texts = response_texts(backbone, rollout)
            total += function_scores(functions, [request_text(e.prompt) for e in batch], texts).to(total.device)
        return total

    return score

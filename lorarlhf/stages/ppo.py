"""The ppo stage: give each role its adapter, train, keep the best policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lorarlhf.backbone.adapters import written_adapter
from lorarlhf.backbone.base import BASE_FILE
from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.load import load_backbone
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import SPLITS, load_prompt_rows
from lorarlhf.data.rows import request_text
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.data.tokenized import read_by_model
from lorarlhf.display import StageDisplay, read_rows
from lorarlhf.errors import UserError, first_line
from lorarlhf.generation.sample import ResponseSampler
from lorarlhf.lock import one_writer
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.planner.fit import auto_token_budget, check_memory
from lorarlhf.recipe.sections import LoraConfig, PPOConfig, Recipe, ScalarLoraOverride
from lorarlhf.recipe.stages import STAGES
from lorarlhf.rl.algorithms import Algorithm, make_algorithm
from lorarlhf.rl.checkpoint import load_checkpoint
from lorarlhf.rl.held_out import HeldOut
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.loop import Setup, evaluate, train
from lorarlhf.rl.prompts import PromptStream
from lorarlhf.rl.rewards import RewardFunction, WeightedReward, all_reward_functions, columns_wanted
from lorarlhf.rl.score import ScoringPasses, response_scorer
from lorarlhf.rl.state import TrainingState
from lorarlhf.rl.symptoms import Watch
from lorarlhf.rl.trl_engine import check_trl, train_with_trl
from lorarlhf.run import Run
from lorarlhf.stages.beginning import check_not_interrupted, check_room, checkpoint_to_go_on_from
from lorarlhf.stages.gpus import mention_other_gpus
from lorarlhf.stages.inputs import check_inputs
from lorarlhf.stages.origins import check_origins, write_origins
from lorarlhf.trackers import Trackers
from lorarlhf.training.checkpoint import move_aside
from lorarlhf.training.doubt import doubt_of

logger = logging.getLogger(__name__)
Engine = Literal["lorarlhf", "trl"]


def train_ppo(
    recipe: Recipe,
    run: Run | Path | str,
    resume: bool = False,
    reward: str | None = None,
    backbone: SharedBackbone | None = None,
    engine: Engine = "lorarlhf",
    reward_functions: Sequence[RewardFunction] = (),
    allow_other_base: bool = False,
) -> dict[str, Any]:
    """Improve the policy against the reward, save its best adapter; return what `summary.json` holds.

    The policy starts from `RUN/sft` if that stage has run, else from the bare base; the reference is where it started.

    Args:
        run: a run, or its folder.
        resume: go on from the last checkpoint.
        reward: folder or Hub id of a reward adapter; None takes `RUN/reward`.
        backbone: one that is loaded already. None loads the recipe's model.
        engine: whose loop updates policy and critic. Everything around it is the same.
        reward_functions: `f(prompts, responses) -> numbers`, added to the reward, each with weight 1, beside those
            that the recipe names. Further parameters get the columns of the prompt data that they name.
        allow_other_base: take adapters that say they were trained on another base model.
    """
    run = Run(run)
    with one_writer(run.path):
        return _train_ppo(recipe, run, resume, reward, backbone, engine, reward_functions, allow_other_base)


def _train_ppo(
    recipe: Recipe,
    run: Run,
    resume: bool,
    reward: str | None,
    backbone: SharedBackbone | None,
    engine: Engine,
    reward_functions: Sequence[RewardFunction],
    allow_other_base: bool,
) -> dict[str, Any]:
    start = time.perf_counter()
    functions = all_reward_functions(recipe, reward_functions)
    if engine == "trl":
        check_trl(recipe.ppo, resume)
    reward_folder = find_reward_adapter(recipe.ppo.reward_model_weight, bool(functions), run, reward)
    check_not_interrupted(run, "sft")
    check_inputs("ppo", recipe, run.path)
    folder, has_sft = run.stage("ppo"), run.has_adapter("sft")
    checkpoint = checkpoint_to_go_on_from(recipe, run, "ppo", resume)
    origins = {"sft": run.stage("sft") if has_sft else None, "reward": reward_folder}
    if resume:
        check_origins(folder, origins)
    if reward_folder == run.stage("reward") and (doubt := doubt_of(run.read_summary("reward"), again=True)):
        logger.warning(doubt)
    wanted = columns_wanted(functions)
    config = recipe.ppo
    splits = SPLITS if config.eval_every else SPLITS[:1]  # few prompts need not be enough to hold some out
    loaded = {split: load_prompt_rows(recipe.data, split, wanted) for split in splits}
    if config.micro_batch_tokens == "auto":  # before the model takes its share of the memory that is free
        config = config.model_copy(update={"micro_batch_tokens": auto_token_budget(recipe, reference=has_sft)})
        recipe = recipe.model_copy(update={"ppo": config})
    if backbone is None:
        mention_other_gpus("ppo")
        check_memory("ppo", recipe, reference=has_sft)
        backbone = load_backbone(recipe.model, recipe.data)
    read = {split: read_by_model(rows, recipe.data, backbone.tokenizer, split) for split, rows in loaded.items()}
    prompts, eval_prompts = read["train"], read.get("test", [])[: config.eval_prompts]
    _check_prompts(config, prompts, eval_prompts, engine)

    algorithm = make_algorithm(config)
    torch.manual_seed(recipe.seed)
    attach_roles(backbone, algorithm, recipe.lora, run, reward_folder, allow_other_base)
    if config.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    learner = Learner(backbone, config, backbone.trained_roles, folder)
    learner.share.check(config.batch_size // config.generations, "ppo.batch_size")
    trackers = Trackers(config.report_to, folder, config.model_dump(mode="json"))
    watch = Watch()

    def log(row: dict[str, Any]) -> None:
        warnings = watch.observe(row)
        display.log({**row, "warnings": warnings} if warnings else row)
        trackers.log(row)
        if "eval_reward" in row and learner.is_main and trackers.names:
            trackers.log_samples(_samples(folder, row["iteration"]), row["step"])

    setup = make_setup(backbone, config, prompts, eval_prompts, functions, log, folder, recipe.seed)
    check_room(folder, backbone, backbone.trained_roles, config, resume)
    if not resume:
        move_aside(folder)
    display = _display(config, folder, resume, quiet=not learner.is_main)
    if learner.is_main:
        run.write_recipe(recipe, "ppo")
        if not resume:
            write_origins(folder, origins)
    with display, trackers:
        state = TrainingState(config.kl_coef) if checkpoint is None else load_checkpoint(checkpoint, folder, learner)
        display.begin(config.iterations, state.iteration)
        if resume and learner.is_main:  # it alone shows what is observed
            for row in read_rows(display.path, display.unit):
                watch.observe(row)
        if checkpoint is None and setup.held_out is not None and config.eval_every:
            evaluate(setup, state, learner)
        if engine == "trl":
            train_with_trl(setup, config, state, learner)
        else:
            train(setup, algorithm, config, state, learner)
    if state.best is not None:
        backbone.load_role("policy", folder / "best")
    backbone.train_roles()
    summary = {
        "engine": engine,
        "advantage_estimator": config.advantage_estimator,
        **_outcome(state, config),
        "reference": "sft" if has_sft else "base",
        "train_prompts": len(prompts),
        "train_rows": len(loaded["train"].rows),
        "eval_prompts": len(eval_prompts),
        "eval_rows": len(loaded["test"].rows) if "test" in loaded else 0,
        "seconds": time.perf_counter() - start,
        "peak_memory_gb": peak_memory_bytes() / 1e9,
    }
    if learner.is_main:
        with written_adapter(folder) as part:
            backbone.save_role("policy", part)
            backbone.tokenizer.save_pretrained(part)
        run.write_summary("ppo", summary)
    learner.wait()
    return summary


def _display(config: PPOConfig, folder: Path, resume: bool, quiet: bool) -> StageDisplay:
    stage = STAGES["ppo"]
    title = stage.name if config.advantage_estimator == "gae" else config.advantage_estimator
    return StageDisplay(title, stage.unit, stage.columns, folder, resume, quiet=quiet, phase=partial(_phase, config))


def _samples(folder: Path, iteration: int) -> list[dict[str, Any]]:
    """What an evaluation has sampled, as a table for trackers."""
    rows = [row for row in read_rows(folder / "samples.jsonl", "iteration") if row["iteration"] == iteration]
    return [{**row, "prompt": request_text(row["prompt"])} for row in rows]


def _outcome(state: TrainingState, config: PPOConfig) -> dict[str, Any]:
    """What training has come to, and which policy is kept of it."""
    return {
        "iterations": state.iteration,
        "stopped": state.reason_to_stop(config),
        "skipped": state.skipped,
        "reward": state.last.get("reward"),
        "kl": state.last.get("kl"),
        "before": state.first and state.first.row,
        "best": state.best and state.best.row,
        "improved": state.improved(config),
    }


def result_lines(summary: Mapping[str, Any], config: PPOConfig) -> list[str]:
    """What the stage has come to, and where that is not what it set out for."""
    before, best, lines = summary["before"], summary["best"], []
    if best:
        lines.append(
            f"held-out reward {before['eval_reward']:.3f} -> {best['eval_reward']:.3f} at iteration "
            f"{best['iteration']}, KL {best['eval_kl']:.2f} nats a response"
        )
    if reason := summary["stopped"]:
        lines.append(f"stopped at iteration {summary['iterations']} of {config.iterations}: {reason}")
    if skipped := summary["skipped"]:
        lines.append(f"steps left out for NaN or infinity (ppo.on_nan): {skipped}")
    if summary["improved"] is False:
        lines.append("the policy kept is the one from before training, none was better on the held-out prompts")
    return lines


def _phase(config: PPOConfig, iteration: int) -> str:
    """What an iteration (1 is the first) is for, where it is not for the policy."""
    warmup = config.critic_only_iterations
    return f"critic warm-up {iteration}/{warmup}" if 1 <= iteration <= warmup else ""


def make_setup(
    backbone: SharedBackbone,
    config: PPOConfig,
    prompts: Sequence[PromptExample],
    eval_prompts: Sequence[PromptExample],
    functions: Sequence[WeightedReward],
    log: Callable[[dict[str, Any]], None],
    folder: Path,
    seed: int,
) -> Setup:
    """The parts of the loop, put together."""
    sampler = ResponseSampler(backbone, config.response_length, config.temperature)
    passes = ScoringPasses(backbone, config.temperature, config.token_budget)
    reward = response_scorer(passes, config.reward_model_weight, functions, config.reward_timeout)
    return Setup(
        prompts=PromptStream(prompts, config.batch_size, config.generations, seed),
        sampler=sampler,
        passes=passes,
        reward=reward,
        held_out=HeldOut(eval_prompts, sampler, passes, reward, config, folder, seed) if eval_prompts else None,
        update_budget=TokenBudget("update", config.token_budget),
        log=log,
        folder=folder,
        seed=seed,
    )


def _check_prompts(
    config: PPOConfig, prompts: Sequence[PromptExample], eval_prompts: Sequence[PromptExample], engine: Engine
) -> None:
    if config.eval_every and not eval_prompts:
        raise UserError(
            "ppo.eval_every: data.test_size 0 leaves no held-out prompts to evaluate on; raise it, set "
            "data.prompts_test, or set ppo.eval_every to 0"
        )
    if engine == "trl" and len(prompts) < config.batch_size:  # it would wait for a full batch for ever
        raise UserError(f"ppo.batch_size: TRL needs as many prompts, and there are {len(prompts)}; lower it")


def find_reward_adapter(weight: float, has_functions: bool, run: Run, reward: str | None) -> Path | None:
    """Folder of the reward adapter; None where Python functions alone give the reward.

    Args:
        weight: of the reward model (`ppo.reward_model_weight`).

    Raises:
        UserError: there is no adapter and nothing in its place.
    """
    if weight == 0:
        if not has_functions:
            raise UserError("ppo.reward_model_weight is 0 and ppo.reward_functions is empty: nothing gives a reward")
        return None
    if reward is None:
        if run.has_adapter("reward"):
            return run.stage("reward")
        check_not_interrupted(run, "reward")
        if has_functions:
            return None
        raise UserError(
            f"{run.stage('reward')}: no reward adapter there; run `lorarlhf reward --recipe NAME --output-dir "
            f"{run.path}` first, or give one with --reward"
        )
    folder = Path(reward).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(reward, allow_patterns=["adapter_*", BASE_FILE]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"--reward {reward}: neither a folder nor a Hub id that can be read: {first_line(error)}"
            ) from error
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"--reward {reward}: no adapter_config.json there; give the folder `lorarlhf reward` wrote")
    return folder


def attach_roles(
    backbone: SharedBackbone,
    algorithm: Algorithm,
    lora: LoraConfig,
    run: Run,
    reward_folder: Path | None,
    allow_other_base: bool = False,
) -> None:
    """Policy, reference, reward model and critic, each where it starts from; only policy and critic train.

    The critic begins as a copy of the reward model, unless the recipe gives it a shape of its own; where the algorithm
    has none, there is none.
    """
    if run.has_adapter("sft"):
        backbone.load_role("policy", run.stage("sft"), allow_other_base=allow_other_base)
        backbone.copy_role("policy", "reference")
    else:
        backbone.attach("policy", lora.for_role("policy"))
    if reward_folder is not None:
        backbone.load_role("reward", reward_folder, allow_other_base=allow_other_base)
    if not algorithm.has_critic:
        backbone.train_roles("policy")
        return
    if reward_folder is not None and lora.critic == ScalarLoraOverride():
        backbone.copy_role("reward", "critic")
    else:
        backbone.attach("critic", lora.for_role("critic"))
        backbone.value_head.reset_parameters()  # drawn anew, from the recipe's seed
    backbone.train_roles("policy", "critic")

"""The ppo stage: give each role its adapter, train, keep the best policy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lorarlhf.backbone.budget import TokenBudget
from lorarlhf.backbone.shared import SharedBackbone
from lorarlhf.data.examples import SPLITS, Loaded, Split, load_prompt_rows
from lorarlhf.data.rows import PromptRow, request_text
from lorarlhf.data.sources import ROW_CACHE
from lorarlhf.data.tokenize import PromptExample
from lorarlhf.data.tokenized import read_by_model
from lorarlhf.display import StageDisplay, read_rows
from lorarlhf.errors import UserError
from lorarlhf.generation.sample import ResponseSampler
from lorarlhf.json_file import telling_of
from lorarlhf.lock import one_writer
from lorarlhf.memory import peak_memory_bytes
from lorarlhf.planner.fit import auto_token_budget
from lorarlhf.recipe.sections import PPOConfig, Recipe
from lorarlhf.recipe.stages import STAGES
from lorarlhf.rl.algorithms import Algorithm, make_algorithm
from lorarlhf.rl.checkpoint import load_checkpoint
from lorarlhf.rl.held_out import HeldOut
from lorarlhf.rl.learner import Learner
from lorarlhf.rl.loop import Log, LoopParts, evaluate, train
from lorarlhf.rl.process_group import ProcessGroup
from lorarlhf.rl.prompts import PromptStream
from lorarlhf.rl.rewards import RewardFunction, WeightedReward, all_reward_functions, columns_wanted
from lorarlhf.rl.score import ScoringPasses, response_scorer
from lorarlhf.rl.state import TrainingState
from lorarlhf.rl.symptoms import SymptomMonitor
from lorarlhf.rl.trl_engine import check_trl, train_with_trl
from lorarlhf.run import SUMMARY, Run
from lorarlhf.stages.beginning import check_not_interrupted, check_room, checkpoint_to_go_on_from
from lorarlhf.stages.inputs import check_inputs
from lorarlhf.stages.loading import load_for_training
from lorarlhf.stages.origins import check_origins, write_origins
from lorarlhf.stages.roles import attach_roles, find_reward_adapter
from lorarlhf.stopwatch import Stopwatch
from lorarlhf.trackers import Trackers
from lorarlhf.training.checkpoint import move_aside
from lorarlhf.training.doubt import doubt_of
from lorarlhf.training.results import save_results

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
    # What it starts from: refused here, before anything is loaded.
    functions = all_reward_functions(recipe, reward_functions)
    checkpoint, adapters = _beginning(recipe, run, resume, reward, functions, engine)
    stopwatch = Stopwatch(checkpoint)
    rows = _prompt_rows(recipe, functions)
    has_sft = adapters["sft"] is not None
    if recipe.ppo.micro_batch_tokens == "auto":  # before the model takes its share of the memory that is free
        tokens = auto_token_budget(recipe, reference=has_sft)
        recipe = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"micro_batch_tokens": tokens})})
    backbone = backbone or load_for_training("ppo", recipe, reference=has_sft)
    prompts, eval_prompts, counted = _prompt_examples(rows, recipe, backbone, engine)
    del rows  # texts of all rows, of which few may be taken
    ROW_CACHE.clear()  # no stage that trains comes after this one
    # Roles, each with its adapter, and what trains them.
    config, folder, algorithm = recipe.ppo, run.stage("ppo"), make_algorithm(recipe.ppo)
    torch.manual_seed(recipe.seed)
    attach_roles(backbone, algorithm, recipe.lora, adapters["sft"], adapters["reward"], allow_other_base)
    if config.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    processes = ProcessGroup(backbone.device)
    processes.share.check(config.batch_size // config.generations, "ppo.batch_size")
    learner = Learner(backbone, config, backbone.trained_roles, folder, processes)
    check_room(folder, backbone, backbone.trained_roles, config, resume)
    if not resume:
        move_aside(folder)
    log = _Log(config, folder, resume, quiet=not processes.is_main)
    parts = make_parts(
        backbone, config, prompts, eval_prompts, functions, log, folder, recipe.seed, stopwatch, log.display.show_phase
    )
    if processes.is_main:
        run.write_recipe(recipe, "ppo")
        if not resume:
            write_origins(folder, adapters)
    # The loop, and the policy that is kept of it.
    state = _loop(parts, algorithm, config, learner, checkpoint, log, engine)
    if state.best is not None:
        backbone.load_role("policy", folder / "best")
    summary = {
        "engine": engine,
        "advantage_estimator": config.advantage_estimator,
        **_outcome(state, config),
        "reference": "sft" if has_sft else "base",
        **counted,
        "seconds": stopwatch.seconds,
        "peak_memory_gb": peak_memory_bytes() / 1e9,
    }
    save_results(run, "ppo", backbone, "policy", summary)
    return summary


def _beginning(
    recipe: Recipe,
    run: Run,
    resume: bool,
    reward: str | None,
    functions: Sequence[WeightedReward],
    engine: Engine,
) -> tuple[Path | None, dict[str, Path | None]]:
    """The checkpoint to go on from, and the folders of the adapters to start from, "sft" and "reward".

    None is in the place of what there is not. Raises UserError for all that can be told before anything is loaded.
    """
    if engine == "trl":
        check_trl(recipe.ppo, resume)
    reward_folder = find_reward_adapter(recipe.ppo.reward_model_weight, bool(functions), run, reward)
    check_not_interrupted(run, "sft")
    check_inputs("ppo", recipe, run.path)
    checkpoint = checkpoint_to_go_on_from(recipe, run, "ppo", resume)
    adapters = {"sft": run.stage("sft") if run.has_adapter("sft") else None, "reward": reward_folder}
    if resume:
        check_origins(run.stage("ppo"), adapters)
    if reward_folder is not None and reward_folder == run.stage("reward"):
        with telling_of(reward_folder / SUMMARY):
            doubt = doubt_of(run.read_summary("reward"))
        if doubt:
            logger.warning(doubt)
    return checkpoint, adapters


def _loop(
    parts: LoopParts,
    algorithm: Algorithm,
    config: PPOConfig,
    learner: Learner,
    checkpoint: Path | None,
    log: _Log,
    engine: Engine,
) -> TrainingState:
    """Train to the end, from a checkpoint or from an evaluation of where the policy starts; returns where it ended."""
    with log.display, log.trackers:
        state = load_checkpoint(checkpoint, parts.folder, learner) if checkpoint else TrainingState(config.kl_coef)
        log.begin(config.iterations, state.iteration)
        if checkpoint is None and parts.held_out is not None and config.eval_every:
            evaluate(parts, state, learner)
        if engine == "trl":
            train_with_trl(parts, config, state, learner)
        else:
            train(parts, algorithm, config, state, learner)
    return state


def _prompt_rows(recipe: Recipe, functions: Sequence[WeightedReward]) -> dict[Split, Loaded[PromptRow]]:
    """Prompts by split, with the columns that reward functions ask for."""
    wanted = columns_wanted(functions)
    splits = SPLITS if recipe.ppo.eval_every else SPLITS[:1]  # few prompts need not be enough to hold some out
    return {split: load_prompt_rows(recipe.data, split, wanted) for split in splits}


def _prompt_examples(
    rows: Mapping[Split, Loaded[PromptRow]], recipe: Recipe, backbone: SharedBackbone, engine: Engine
) -> tuple[list[PromptExample], list[PromptExample], dict[str, int]]:
    """Prompts to train on, held-out ones, and how many these are, of how many rows. Raises UserError for too few."""
    config = recipe.ppo
    read = {split: read_by_model(rows[split], recipe.data, backbone.tokenizer, split) for split in rows}
    prompts, eval_prompts = read["train"], read.get("test", [])[: config.eval_prompts]
    if config.eval_every and not eval_prompts:
        raise UserError(
            "ppo.eval_every: data.test_size 0 leaves no held-out prompts to evaluate on; raise it, set "
            "data.prompts_test, or set ppo.eval_every to 0"
        )
    if engine == "trl" and len(prompts) < config.batch_size:  # it would wait for a full batch for ever
        raise UserError(f"ppo.batch_size: TRL needs as many prompts, and there are {len(prompts)}; lower it")
    counted = {
        "train_prompts": len(prompts),
        "train_rows": len(rows["train"].rows),
        "eval_prompts": len(eval_prompts),
        "eval_rows": len(rows["test"].rows) if "test" in rows else 0,
    }
    return prompts, eval_prompts, counted


class _Log:
    """Where each row of numbers goes: on the display, with the symptoms that it brings, and to the trackers.

    Made once the stage's folder is free: the display writes there.

    Args:
        quiet: show nothing, as every process but the first does.
    """

    def __init__(self, config: PPOConfig, folder: Path, resume: bool, quiet: bool) -> None:
        stage, phase = STAGES["ppo"], partial(_phase, config)
        title = stage.name if config.advantage_estimator == "gae" else config.advantage_estimator
        self.display = StageDisplay(title, stage.unit, stage.columns, folder, resume, quiet=quiet, phase=phase)
        self.trackers = Trackers(config.report_to, folder, config.model_dump(mode="json"))
        self.symptoms = SymptomMonitor()

    def begin(self, iterations: int, done: int) -> None:
        """Go on after so many iterations of so many, with what their rows have shown already."""
        self.display.begin(iterations, done)
        if not self.display.quiet:
            for row in read_rows(self.display.path, self.display.unit):
                self.symptoms.observe(row)

    def __call__(self, row: dict[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        warnings = self.symptoms.observe(row)
        self.display.log({**row, "warnings": warnings} if warnings else row)
        self.trackers.log(row)
        if samples:
            shown = [{**sample, "prompt": request_text(sample["prompt"])} for sample in samples]
            self.trackers.log_samples(shown, row["step"])


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


def make_parts(
    backbone: SharedBackbone,
    config: PPOConfig,
    prompts: Sequence[PromptExample],
    eval_prompts: Sequence[PromptExample],
    functions: Sequence[WeightedReward],
    log: Log,
    folder: Path,
    seed: int,
    stopwatch: Stopwatch | None = None,
    show: Callable[[str], None] = lambda phase: None,
) -> LoopParts:
    """The parts of the loop, put together."""
    sampler = ResponseSampler(backbone, config.response_length, config.temperature)
    passes = ScoringPasses(backbone, config.temperature, config.token_budget)
    reward = response_scorer(passes, config.reward_model_weight, functions, config.reward_timeout)
    return LoopParts(
        prompts=PromptStream(prompts, config.batch_size, config.generations, seed),
        sampler=sampler,
        passes=passes,
        reward=reward,
        held_out=HeldOut(eval_prompts, sampler, passes, reward, config, folder, seed) if eval_prompts else None,
        update_budget=TokenBudget("update", config.token_budget),
        log=log,
        show=show,
        folder=folder,
        seed=seed,
        stopwatch=stopwatch or Stopwatch(),
    )

"""A recipe made to measure: what five answers come to, and what of it fits."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.planner.fit import plans_of
from lorarlhf.planner.plan import StagePlan
from lorarlhf.recipe.full import comment
from lorarlhf.recipe.load import Option, load_recipe
from lorarlhf.recipe.schema import COPIED_SCHEMA, modeline
from lorarlhf.recipe.sections import Recipe
from lorarlhf.recipe.stages import trained_by
from lorarlhf.recipe.yaml import flow
from lorarlhf.rl.functions import packages_of
from lorarlhf.stages.interview import CPU_RECIPE, GIB, LOOKED_AT, BaseModel, Card, Data

HOURS = {"cuda": 8, "cpu": 1}  # that the recipes that ship are sized for, a night and a lunch; not measured
LARGE = 3e9  # parameters, from which on the rate is halved
BATCH = 16  # examples a step in sft and reward
FEWEST_ITERATIONS = 10
FEWEST_TESTED = 50  # held-out examples: a win rate of 50 has a standard error of 7 points
MOST_TESTED = 1000  # of 2%
LENGTHS = {"cuda": (1024, 512), "cpu": (256, 128)}  # the most tokens of a prompt and of a response
COLUMN = 34  # of the comments


@dataclass(frozen=True)
class Answers:
    """All five; `function` gives the reward where no reward model does."""

    card: Card
    model: BaseModel
    data: Data
    function: str | None
    hours: float


@dataclass(frozen=True)
class Tailored:
    """A recipe that fits: its text, what it is once loaded, and what each stage takes."""

    text: str
    recipe: Recipe
    plans: list[StagePlan]


Settings = dict[str, tuple[Any, str]]  # dotted key to its value, and why


def tailored(answers: Answers) -> Tailored:
    """The recipe with the largest batches and lengths that fit.

    Raises:
        UserError: the model is too large for the card.
    """
    parent, settings = _parent(answers), _settings(answers)
    card = answers.card
    for smaller, share in _smaller(answers, settings):
        named = {key: Option("init", value) for key, (value, _) in smaller.items()}
        recipe = load_recipe(parent, named)
        plans = _fitting(recipe, answers, int(share * card.capacity))
        if plans:
            return Tailored(_text(answers, parent, smaller, plans), recipe, plans)
    raise UserError(
        f"{answers.model.name} does not fit on {card.name}, of which {card.capacity / GIB:.1f} GiB are free, even in 4 "
        "bits and with short texts; choose a smaller model"
    )


def _fitting(recipe: Recipe, answers: Answers, capacity: int) -> list[StagePlan]:
    """The plan of each stage that trains; none as soon as one takes more than so many bytes."""
    plans: list[StagePlan] = []
    stages = trained_by(recipe)
    for plan in plans_of(recipe, answers.model.config, stages, answers.card.target, capacity, "sft" in stages):
        if plan.peak.total > capacity:
            return []
        plans.append(plan)
    return plans


def _usual(answers: Answers) -> Recipe:
    """What those that ship do in `HOURS`."""
    name = CPU_RECIPE if answers.card.target == "cpu" else "base/training"
    return load_recipe(name, {"model.name": Option("init", answers.model.name)})


def _examples(answers: Answers) -> int:
    """Of sft and reward, in line with the time."""
    usual = _usual(answers)
    most = usual.data.max_examples or usual.reward.max_steps * BATCH
    return max(1, round(most * answers.hours / HOURS[answers.card.target]))


def _tested(answers: Answers) -> int:
    """Held-out examples in line with the time: each is answered twice by `evaluate`, which can outlast the training."""
    most = _usual(answers).data.eval_examples or MOST_TESTED
    return min(most, max(FEWEST_TESTED, round(most * answers.hours / HOURS[answers.card.target])))


def _parent(answers: Answers) -> str:
    if answers.card.target == "cpu":
        return CPU_RECIPE
    return answers.data.base or "base/training"


def _settings(answers: Answers) -> Settings:
    stages = _stages(answers)
    return {
        "stages": stages,
        "model.name": (answers.model.name, f"{answers.model.size} parameters"),
        **_data(answers),
        **_lengths(answers),
        **_supervised(answers, stages[0]),
        **_ppo(answers),
        "export.license": (answers.model.licence, _of_licence(answers.model.licence)),
    }


def _of_licence(licence: str | None) -> str:
    named = "that of the base model, which the model card names"
    return named if licence else "not known here: put in that of the base model before you publish"


def _stages(answers: Answers) -> tuple[list[str], str]:
    data, model = answers.data, answers.model
    imitates = data.kind == "demonstrations" or (data.kind != "prompts" and not model.chats)
    report = importlib.util.find_spec("matplotlib") is not None
    wanted = {"sft": imitates, "reward": answers.function is None, "ppo": True, "evaluate": True, "report": report}
    stages = [stage for stage, is_wanted in wanted.items() if is_wanted]
    if imitates:
        why = "sft first: " + ("the model has no chat template" if not model.chats else "the data are demonstrations")
    else:
        why = "no sft: " + ("the model answers already" if model.chats else "there is nothing to imitate")
    return [*stages, "export"], f"what `lorarlhf run` does; {why}"


def _data(answers: Answers) -> Settings:
    data, card = answers.data, answers.card
    if data.base is not None:
        base = load_recipe(data.base, {"model.name": Option("init", answers.model.name)}).data
        keys = ("sft", "preferences", "prompts", "train_split", "test_split", "test_size", "wrap_text")
        settings: Settings = {f"data.{key}": (getattr(base, key), "") for key in keys} if card.target == "cpu" else {}
    else:
        of_use = {"sft": data.kind != "prompts", "preferences": data.compares, "prompts": True}
        on_cpu = card.target == "cpu"  # whose recipe has data of its own, to be taken back
        settings = {f"data.{key}": (data.source if use else None, "") for key, use in of_use.items() if use or on_cpu}
        if data.train_split:
            settings["data.train_split"] = (data.train_split, "")
        if data.test_split:
            settings["data.test_split"] = (data.test_split, "")
        elif data.report is not None and data.report.rows < LOOKED_AT:
            share = min(0.2, max(0.05, math.ceil(3200 / data.report.prompts) / 100))
            settings["data.test_size"] = (share, f"held out, of {data.report.prompts:,} different prompts")
        settings["data.on_bad_row"] = ("skip", "rows that cannot be used are counted and left out")
    settings["data.max_examples"] = (_examples(answers), f"the most, drawn at random: {answers.hours:g} h")
    settings["data.eval_examples"] = (_tested(answers), "likewise, to test each stage on")
    if answers.model.thinks:
        settings["data.chat_template_kwargs"] = ({"enable_thinking": False}, "thoughts would take up the response")
    return settings


def _lengths(answers: Answers) -> Settings:
    """By what 95% of the rows need; those of shared data on a card stand in its own recipe."""
    prompt, response = LENGTHS[answers.card.target]
    why = "tokens"
    if answers.data.report is not None:
        lengths = answers.data.report.lengths
        prompt = _rounded(lengths["prompt"].p95, prompt)
        answered = [lengths[name].p95 for name in ("chosen", "completion") if name in lengths]
        response = _rounded(1.25 * answered[0], response) if answered else response
        why = "tokens; 95% of the rows are no longer, or it is the most that is sensible here"
    elif answers.card.target == "cuda":
        return {}
    return {
        "data.max_prompt_length": (prompt, why),
        "data.max_length": (prompt + response, "prompt and response"),
        "ppo.response_length": (response, "longer ones are cut off"),
    }


def _rounded(tokens: float, most: int) -> int:
    return min(most, max(32, 16 * math.ceil(tokens / 16)))


def _supervised(answers: Answers, stages: list[str]) -> Settings:
    settings: Settings = {}
    report = answers.data.report
    rows = min(_examples(answers), report.rows if report and report.rows < LOOKED_AT else math.inf)
    for stage in (stage for stage in ("sft", "reward") if stage in stages):
        settings[f"{stage}.max_steps"] = (-1, "all of data.max_examples, once")
        settings[f"{stage}.warmup_steps"] = (min(50, round(rows / BATCH / 10)), "a tenth of the steps, at most 50")
    if answers.data.kind == "scored completions":
        settings["reward.objective"] = ("regression", "the data rate responses one by one")
        settings["reward.center_rewards_coefficient"] = (0.0, "for comparisons alone")
    return settings


def _in_time(answers: Answers) -> int:
    """Iterations of ppo, in line with the time."""
    return round(_usual(answers).ppo.iterations * answers.hours / HOURS[answers.card.target])


def _ppo(answers: Answers) -> Settings:
    usual = _usual(answers).ppo
    iterations = max(FEWEST_ITERATIONS, _in_time(answers))
    rate = usual.learning_rate * math.sqrt(usual.iterations / iterations)
    rate *= 0.5 if answers.model.parameters >= LARGE and answers.card.target == "cuda" else 1
    often = max(4, iterations // 10)
    looks = 1 + math.ceil(iterations / often)  # one of them before the first iteration
    prompts = min(usual.eval_prompts, iterations * usual.batch_size // (3 * looks))
    settings: Settings = {
        "ppo.iterations": (
            iterations,
            f"{answers.hours:g} h, by a rule of thumb"
            if iterations == _in_time(answers)
            else f"the fewest that lead anywhere: more than {answers.hours:g} h",
        ),
        "ppo.learning_rate": (
            float(f"{rate:.1g}"),
            "by the number of steps: the fewer, the longer (docs/recipe-choices.md)",
        ),
        "ppo.eval_every": (often, ""),
        "ppo.eval_prompts": (prompts, "all evaluations together take a third of the responses of training, at most"),
        "ppo.save_every": (often, ""),
        "ppo.micro_batch_tokens": ("auto", "what fits"),
    }
    if answers.function is not None:
        if packages := packages_of(answers.function):
            settings["requires"] = (packages, "the package that gives the reward: its code is run")
        settings["ppo.reward_functions"] = ([answers.function], "the whole reward")
        settings["ppo.reward_model_weight"] = (0.0, "no reward model")
        settings["ppo.advantage_estimator"] = ("grpo", "compares the responses to a prompt; no critic")
    return settings


def _smaller(answers: Answers, settings: Settings) -> Iterator[tuple[Settings, float]]:
    """The settings with less and less memory, each with the share of the card that it may take."""

    def quantised(kind: str) -> Settings:
        why = "fits as it is, and so loses nothing" if kind == "none" else "weights in 4 bits"
        return {"model.quantization": (kind, why)}

    def at_a_time(examples: int) -> Settings:
        return {
            f"{stage}.{key}": (value, why)
            for stage in trained
            for key, value, why in (
                ("per_device_train_batch_size", examples, "at a time"),
                ("gradient_accumulation_steps", BATCH // examples, f"{BATCH} a step"),
            )
        }

    trained = [stage for stage in ("sft", "reward") if stage in settings["stages"][0]]
    yield {**settings, **quantised("none"), **at_a_time(4)}, 0.7  # the rest is for larger micro-batches of ppo
    for examples in (4, 2, 1):
        yield {**settings, **quantised("nf4"), **at_a_time(examples)}, 1.0
    least = {**settings, **quantised("nf4"), **at_a_time(1)}
    if answers.function is None and answers.card.target == "cuda":
        least |= {"ppo.advantage_estimator": ("rloo", "no critic: it did not fit")}
        yield least, 1.0
    parent = load_recipe(_parent(answers), {key: Option("init", value) for key, (value, _) in least.items()})
    prompt, response = parent.data.max_prompt_length // 2, parent.ppo.response_length // 2
    least |= {
        "data.max_prompt_length": (prompt, "half of what the data have: more does not fit"),
        "data.max_length": (prompt + response, "prompt and response"),
        "ppo.response_length": (response, "likewise"),
    }
    yield least, 1.0


def _text(answers: Answers, parent: str, settings: Settings, plans: list[StagePlan]) -> str:
    card, data = answers.card, answers.data
    peaks = ", ".join(f"{plan.stage} {plan.peak.total / GIB:.1f}" for plan in plans)
    short = _in_time(answers) < FEWEST_ITERATIONS
    header = [
        *comment(f"{answers.model.name} on {data.source}, for {card.name}; written by `lorarlhf init`."),
        "#",
        *comment(f"Planned, in GiB of {card.capacity / GIB:.1f}: {peaks}."),
        *comment(
            f"Time: made for {answers.hours:g} h by a rule of thumb, not measured: the recipes that ship are for "
            "a night on a card and an hour on a CPU; ppo.iterations and data.max_examples are in line with that"
            + (f", but that {FEWEST_ITERATIONS} iterations are the least." if short else ".")
        ),
        "#",
        *comment("`lorarlhf recipes explain KEY` says what a key does; what is not here comes from what is extended."),
        "#",
        modeline(COPIED_SCHEMA),
    ]
    lines = [*header, "", f"extends: {parent}"]
    section = ""
    for key in sorted(settings, key=lambda key: list(Recipe.model_fields).index(key.partition(".")[0])):
        above, _, name = key.rpartition(".")
        if above != section or not above:
            lines += ["", f"{above}:"] if above else [""]
            section = above
        value, why = settings[key]
        text = f"{'  ' if above else ''}{name}: {flow(value)}"
        lines.append(f"{text:{COLUMN}} # {why}" if why else text)
    return "\n".join(lines) + "\n"

"""All that a report tells of a run, read from its folder: plain data, a class for each section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.recipe.sections import BETWEEN, Stage
from lorarlhf.recipe.stages import STAGES
from lorarlhf.reporting.curves import EVAL, MAIN, Costs, costs, overlay, reward_over_kl, stage_curves
from lorarlhf.reporting.evaluations import (
    accuracy_by_group,
    frontier_lines,
    frontier_plots,
    margins_plot,
    reliability_plot,
)
from lorarlhf.reporting.folder import Folder, number
from lorarlhf.reporting.plots import Plot, Series, Table, cell, printable, readable_number, shown, table
from lorarlhf.reporting.samples import Samples, collect_samples
from lorarlhf.run import MEASURED, RECIPE

Fact = tuple[str, str]
# The files of a stage that a report reads.
FILES = (RECIPE, "metrics.jsonl", "summary.json", "evaluation.json", "samples.jsonl", "frontier.json")
TOLD_ELSEWHERE = ("samples", "reliability", "margins", "groups", "same_length", MEASURED)


@dataclass(frozen=True)
class StageSection:
    """A stage that has begun.

    Attributes:
        finished: it has left its summary, and has not gone on since.
        progress: how far it is, in words.
        facts: figures of its summary; `evaluated`: those of its `evaluation.json`.
        other_settings: keys of the recipe that it was run with, where the run's recipe has others by now.
    """

    stage: Stage
    title: str
    finished: bool
    progress: str
    facts: tuple[Fact, ...]
    evaluated: tuple[Fact, ...]
    curves: tuple[Plot, ...]
    other_settings: Table | None


@dataclass(frozen=True)
class JudgedSection:
    """How far the reward model can be trusted, and how far the policy has gone for its reward."""

    over_kl: Plot | None
    reliability: Plot | None
    margins: Plot | None
    groups: Table | None
    frontier: tuple[Plot, ...]
    frontier_lines: tuple[str, ...]


@dataclass(frozen=True)
class RunReport:
    """A run.

    Attributes:
        trained_on: what was trained on what.
        warnings: each with where it comes from.
        recipe: the text of the run's recipe.
        settings: its keys and values.
    """

    name: str
    trained_on: tuple[Fact, ...]
    stages: tuple[StageSection, ...]
    judged: JudgedSection
    samples: Samples | None
    warnings: tuple[Fact, ...]
    costs: Costs
    recipe: str
    settings: Mapping[str, Any]
    rows: Mapping[Stage, Sequence[Mapping[str, Any]]]
    summaries: Mapping[Stage, Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side: figures, what their recipes have differently, and curves over each other."""

    figures: Table
    settings: Table
    plots: tuple[Plot, ...]


def collect(path: Path, name: str, doubts: Mapping[Stage, str] | None = None, verdict: str = "") -> RunReport:
    """What the folder of a run tells, as far as it goes.

    Args:
        name: what the page calls the run.
        doubts: warnings that others have of its stages.
        verdict: what others say of its frontier, if it has one.

    Raises:
        UserError: it is no run.
    """
    if not (path / RECIPE).is_file():
        raise UserError(f"--run {path}: not a run, there is no {RECIPE}; give the --output-dir of a stage")
    folder = Folder(path)
    begun = [stage for stage in STAGES if (path / stage).is_dir()]
    rows = {stage: folder.rows(f"{stage}/metrics.jsonl") for stage in begun}
    summaries = {stage: folder.object(f"{stage}/summary.json") for stage in begun}
    evaluations = {stage: folder.measured(stage, "evaluation.json") for stage in begun}
    settings = folder.settings()
    own = {stage: folder.settings(f"{stage}/{RECIPE}") or settings for stage in begun}
    stages = tuple(
        _stage(stage, settings, own[stage], rows[stage], summaries[stage], evaluations[stage]) for stage in begun
    )
    samples = collect_samples(folder.rows("ppo/samples.jsonl"), summaries.get("ppo", {}), evaluations.get("ppo", {}))
    judged = _judged(folder, rows, summaries, evaluations, verdict)
    recipe = folder.text(RECIPE)
    warnings = [*_warnings(stages, rows, summaries, doubts or {}), *(("files", fault) for fault in folder.faults)]
    return RunReport(
        name=printable(name),
        trained_on=_trained_on(settings, own, summaries),
        stages=stages,
        judged=judged,
        samples=samples,
        warnings=tuple(warnings),
        costs=costs(rows, summaries),
        recipe=recipe,
        settings=settings,
        rows=rows,
        summaries=summaries,
    )


def compare(reports: Sequence[RunReport]) -> Comparison:
    """Several runs."""
    names = [report.name for report in reports]
    told = [
        {f"{section.stage}: {name}": text for section in report.stages for name, text in section.facts}
        for report in reports
    ]
    keys = dict.fromkeys(key for facts in told for key in facts)
    figures = [(key, *(facts.get(key, "") for facts in told)) for key in keys]
    all_keys = dict.fromkeys(key for report in reports for key in report.settings)
    differing = [
        (key, *values)
        for key in all_keys
        if len(set(values := [shown(r.settings[key]) if key in r.settings else "" for r in reports])) > 1
    ]
    plots = [
        overlay(stage, name, [(r.name, r.rows.get(stage, ()), r.summaries.get(stage, {})) for r in reports])
        for stage, numbers in MAIN.items()
        for name in numbers
    ]
    return Comparison(
        table(("", *names), figures),
        table(("key", *names), differing),
        tuple(plot for plot in (_over_kl(reports), *plots) if plot is not None),
    )


def _stage(
    stage: Stage,
    settings: Mapping[str, Any],
    own: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> StageSection:
    info = STAGES[stage]
    done = max((at for row in rows if (at := number(row.get(info.unit))) is not None), default=0)
    total = number(summary.get(f"{info.unit}s"))
    finished = bool(summary) and (total is None or done <= total)
    if finished:
        progress = f"finished: {cell(total)} {info.unit}s" if total is not None else "finished"
    else:
        planned = number(own.get(f"{stage}.iterations" if info.samples else f"{stage}.max_steps"))
        of = f" of {readable_number(planned)}" if planned is not None and planned > 0 else ""
        progress = f"not finished: {readable_number(done)}{of} {info.unit}s so far; it goes on, or was stopped"
    others = [(key, shown(value), shown(settings.get(key))) for key, value in own.items() if value != settings.get(key)]
    return StageSection(
        stage=stage,
        title=info.title,
        finished=finished,
        progress=progress,
        facts=tuple(facts(summary)),
        evaluated=tuple(facts(evaluation)),
        curves=stage_curves(stage, rows, summary),
        other_settings=table(("key", f"in {stage}", "in the run's recipe now"), others) if others else None,
    )


def facts(figures: Mapping[str, Any], prefix: str = "") -> Iterable[Fact]:
    """Numbers and names of a summary or evaluation in their order, an interval beside what it is of.

    What lies deeper than a part of a part is left out.
    """
    for key, value in figures.items():
        name = f"{prefix}{key.removeprefix(EVAL) if prefix else key}".replace("_", " ")
        if key in TOLD_ELSEWHERE or (key.endswith("_interval") and key.removesuffix("_interval") in figures):
            continue
        if isinstance(value, Mapping):
            yield from facts(value, f"{name}: ") if prefix.count(": ") < 2 else ()
        elif not isinstance(value, list) and value is not None:
            ends = figures.get(f"{key}_interval")
            beside = f"  (95%: {cell(ends[0])} to {cell(ends[1])})" if isinstance(ends, list) and len(ends) == 2 else ""
            yield name, f"{cell(value)}{beside}"


def _trained_on(
    settings: Mapping[str, Any],
    own: Mapping[Stage, Mapping[str, Any]],
    summaries: Mapping[Stage, Mapping[str, Any]],
) -> tuple[Fact, ...]:
    """What was trained on what, in a few lines; of each stage by its own recipe."""
    told = [(key, settings.get(f"model.{key}")) for key in ("name", "revision", "quantization", "compute_dtype")]
    lines = [("base model" if key == "name" else key.replace("_", " "), cell(value)) for key, value in told if value]
    if (r := settings.get("lora.r")) is not None:
        lines.append(("LoRA", f"r {cell(r)}, alpha {cell(settings.get('lora.alpha'))}"))
    for stage, used in own.items():
        info = STAGES[stage]
        source = next((value for key in info.data_keys if (value := _source(used, key))), None)
        count = summaries[stage].get("train_prompts" if info.samples else "train_examples")
        how = f", {cell(count)} rows" if count is not None else ""
        algorithm = used.get("ppo.advantage_estimator") if info.samples else None
        lines.append((f"{stage}{f' ({cell(algorithm)})' if algorithm else ''}", f"{cell(source)}{how}"))
    if (seed := settings.get("seed")) is not None:
        lines.append(("seed", cell(seed)))
    return tuple(lines)


def _source(used: Mapping[str, Any], key: str) -> str:
    """What a recipe names as `data.KEY`: text, a mapping with `source`, or a list of these; empty for nothing."""
    named = used.get(f"data.{key}.source") or used.get(f"data.{key}")
    each = named if isinstance(named, list) else [named]
    return BETWEEN.join(cell(one.get("source") if isinstance(one, Mapping) else one) for one in each)


def _judged(
    folder: Folder,
    rows: Mapping[Stage, Sequence[Mapping[str, Any]]],
    summaries: Mapping[Stage, Mapping[str, Any]],
    evaluations: Mapping[Stage, Mapping[str, Any]],
    verdict: str,
) -> JudgedSection:
    """Of the reward model its evaluation, and where it has none, what it measured when it was done."""
    measured = {**summaries.get("reward", {}), **evaluations.get("reward", {})}
    frontier = folder.measured("ppo", "frontier.json")
    return JudgedSection(
        over_kl=reward_over_kl(rows.get("ppo", ()), summaries.get("ppo", {})),
        reliability=reliability_plot(measured),
        margins=margins_plot(measured),
        groups=accuracy_by_group(evaluations.get("reward", {})),
        frontier=frontier_plots(frontier),
        frontier_lines=tuple(frontier_lines(frontier, verdict)),
    )


def _warnings(
    stages: Sequence[StageSection],
    rows: Mapping[Stage, Sequence[Mapping[str, Any]]],
    summaries: Mapping[Stage, Mapping[str, Any]],
    doubts: Mapping[Stage, str],
) -> Iterable[Fact]:
    for section in stages:
        stage, summary = section.stage, summaries[section.stage]
        if not section.finished:
            yield stage, section.progress
        if stage in doubts:
            yield stage, doubts[stage]
        if summary.get("improved") is False:
            yield stage, "the policy kept is the one from before training, none was better on the held-out prompts"
        if stopped := summary.get("stopped"):
            yield stage, f"stopped early: {cell(stopped)}"
        for row in rows[stage]:
            said = row.get("warnings")
            at = f"{stage}, {STAGES[stage].unit} {cell(row.get(STAGES[stage].unit))}"
            yield from ((at, cell(text)) for text in (said.values() if isinstance(said, Mapping) else ()))


def _over_kl(reports: Sequence[RunReport]) -> Plot | None:
    """The evaluations of several runs, reward over KL."""
    series, lines = list[Series](), list[tuple[str, ...]]()
    for place, report in enumerate(reports):
        plot = report.judged.over_kl
        for one in plot.series if plot else ():
            if one.name == "held out":
                series.append(Series(report.name, one.points, "path", labels=one.labels, colour=place))
                lines += [
                    (report.name, label, *map(readable_number, point))
                    for label, point in zip(one.labels, one.points, strict=True)
                ]
    if not series:
        return None
    heads = ("run", "iteration", "KL", "reward")
    return Plot("ppo: reward over KL, held out", "KL, nats a response", "reward", tuple(series), table(heads, lines))

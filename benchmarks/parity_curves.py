"""Both PPO engines on the demo's world: benchmarks/results/parity-cpu.json, docs/parity.svg and a table on stdout.

    LORARLHF_TRL_112=/folder/of/the/unpacked/wheel python benchmarks/parity_curves.py

TRL 1.12 is the installed trl, or the one the variable names. Every seed trains one reward model, which all share. What
TRL's trainer has nothing for is switched off for both; a third series is the demo's recipe as it is. `--redraw` makes
plot and table from the results that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "LORARLHF_TRL_112" in os.environ:
    sys.path.insert(0, os.environ["LORARLHF_TRL_112"])

import torch

from lorarlhf.cli.quiet import quiet_libraries
from lorarlhf.data.rows import request_text
from lorarlhf.demo.world import gold_score, is_fluent
from lorarlhf.display import read_rows
from lorarlhf.recipe.load import load_recipe
from lorarlhf.run import Run, write_json
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward import train_reward

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "parity-cpu.json"
PLOT = REPOSITORY / "docs" / "parity.svg"
NEUTRAL = ["ppo.max_grad_norm=1e6", "ppo.early_stop_kl=null"]
# name: engine, settings, colour
SERIES: dict[str, tuple[Any, list[str], str]] = {
    "TRL 1.12": ("trl", NEUTRAL, "#d1495b"),
    "lorarlhf, the same settings": ("lorarlhf", NEUTRAL, "#00798c"),
    "lorarlhf, the demo's recipe": ("lorarlhf", [], "#b8860b"),
}
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true")
    if not parser.parse_args().redraw:
        quiet_libraries()
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            runs = [run for seed in SEEDS for run in runs_of_seed(seed, Path(folder) / str(seed))]
        names = ("torch", "transformers", "peft", "bitsandbytes", "trl")
        write_json(RESULTS, {"neutral": NEUTRAL, "versions": {name: version(name) for name in names}, "runs": runs})
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    PLOT.write_text(draw(runs), encoding="utf-8")
    print(table(runs))


def runs_of_seed(seed: int, folder: Path) -> list[dict[str, Any]]:
    base = [f"seed={seed}", "lora.reward.top_layers=1.0", "ppo.eval_prompts=128", "ppo.save_every=0"]
    train_reward(load_recipe("demo", sets=base), Run(folder))
    runs = []
    for name, (engine, sets, _) in SERIES.items():
        run = Run(folder / name)
        train_ppo(load_recipe("demo", sets=[*base, *sets]), run, reward=str(folder / "reward"), engine=engine)
        runs.append({"series": name, "seed": seed, **curves(run)})
    return runs


def curves(run: Run) -> dict[str, Any]:
    """What was logged, and what the demo's own rule says of the held-out responses of each evaluation."""
    metrics = read_rows(run.stage("ppo") / "metrics.jsonl", "iteration")
    samples = read_rows(run.stage("ppo") / "samples.jsonl", "iteration")
    evaluations = []
    for row in metrics:
        if "eval_reward" in row:
            own = [sample for sample in samples if sample["iteration"] == row["iteration"]]
            gold = [gold_score(request_text(sample["prompt"]), sample["response"]) for sample in own]
            fluent = [is_fluent(sample["response"]) for sample in own]
            judged = {"gold": mean(gold), "fluent": mean(map(float, fluent))}
            evaluations.append({key.removeprefix("eval_"): value for key, value in row.items()} | judged)
    return {
        "training": [{key: row[key] for key in ("iteration", "reward", "kl")} for row in metrics if "reward" in row],
        "evaluations": evaluations,
        "kept": run.read_summary("ppo")["best"]["iteration"],
    }


# The table


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, of the last policy and of the one that is kept."""
    columns = ("reward", "kl", "gold", "fluent", "finished")
    lines = ["| policy | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    start = [run["evaluations"][0] for run in runs if run["series"] == next(iter(SERIES))]
    lines.append(row_of("before PPO", start, columns))
    for which in ("last", "kept"):
        for name in SERIES:
            own = [run for run in runs if run["series"] == name]
            lines.append(row_of(f"{name}: {which}", [evaluation(run, which) for run in own], columns))
    return "\n".join(lines)


def evaluation(run: dict[str, Any], which: str) -> dict[str, float]:
    if which == "last":
        return run["evaluations"][-1]
    return next(row for row in run["evaluations"] if row["iteration"] == run["kept"])


def row_of(label: str, rows: list[dict[str, float]], columns: tuple[str, ...]) -> str:
    cells = [f"{mean(row[c] for row in rows):.2f} ± {stdev(row[c] for row in rows):.2f}" for c in columns]
    return f"| {label} | " + " | ".join(cells) + " |"


# The plot

WIDTH, HEIGHT, LEFT, TOP, GAP = 250, 210, 44, 34, 56


def draw(runs: list[dict[str, Any]]) -> str:
    """Three panels: thin lines are seeds, thick ones their mean."""
    panels = [
        ("reward of the iteration's responses", "training", "reward"),
        ("KL to the reference, nats a response", "training", "kl"),
        ("true score of held-out responses", "evaluations", "gold"),
    ]
    width = LEFT + len(panels) * (WIDTH + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 66}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (title, rows, key) in enumerate(panels):
        lines = [(run["series"], [(row["iteration"], row[key]) for row in run[rows]]) for run in runs]
        parts.append(panel(LEFT + number * (WIDTH + GAP), title, lines))
    for number, (name, (_, _, colour)) in enumerate(SERIES.items()):
        x, y = LEFT + number * (WIDTH + GAP), TOP + HEIGHT + 52
        parts.append(
            f'<path d="M{x} {y - 4}h24" stroke="{colour}" stroke-width="3"/><text x="{x + 30}" y="{y}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def panel(x0: float, title: str, lines: list[tuple[str, list[tuple[int, float]]]]) -> str:
    points = [point for _, line in lines for point in line]
    last, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> str:
        return f"{x0 + WIDTH * x / last:.1f} {TOP + HEIGHT * (high - y) / (high - low):.1f}"

    def path(line: list[tuple[int, float]], style: str) -> str:
        return f'<path d="M{" L".join(place(*point) for point in line)}" fill="none" {style}/>'

    parts = [
        f'<text x="{x0}" y="{TOP - 14}" font-weight="bold">{title}</text>',
        f'<path d="M{x0} {TOP}v{HEIGHT}h{WIDTH}" fill="none" stroke="#888"/>',
        f'<text x="{x0 + WIDTH}" y="{TOP + HEIGHT + 18}" text-anchor="end">iteration {last}</text>',
    ]
    for y in (low, (low + high) / 2, high):
        column, row = place(0, y).split()
        parts.append(
            f'<text x="{float(column) - 6}" y="{float(row) + 4}" text-anchor="end">{round(y, 1) + 0:.1f}</text>'
        )
    for name, (_, _, colour) in SERIES.items():
        own = [line for series, line in lines if series == name]
        parts += [path(line, f'stroke="{colour}" stroke-opacity="0.35"') for line in own]
        average = [(column[0][0], mean(y for _, y in column)) for column in zip(*own, strict=True)]
        parts.append(path(average, f'stroke="{colour}" stroke-width="2.5"'))
    return "\n".join(parts)


if __name__ == "__main__":
    main()

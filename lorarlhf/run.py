"""The folder of a run: `recipe.yaml`, and a folder a stage with its own `recipe.yaml`, its adapter, `summary.json` and
`metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.files import hash_file, write_file
from lorarlhf.json_file import read_object
from lorarlhf.manifest import chosen_checkpoint, numbered_checkpoints
from lorarlhf.recipe.load import Option, dump_recipe, load_recipe, source_value
from lorarlhf.recipe.sections import Recipe, Stage
from lorarlhf.recipe.stages import LAST_FIRST, STAGES
from lorarlhf.recipe.trust import remember
from lorarlhf.recipe.yaml import show

BEST = "best"  # stands for what a stage keeps

RECIPE, SUMMARY = "recipe.yaml", "summary.json"
COUNTS = ("steps", "iterations", "eval_rows")  # of a summary, what commands go by
WEIGHTS = "adapter_model.safetensors"  # PEFT's name
MEASURED = "adapter"  # key of figures: the hash of the weights that they are of


@dataclass(frozen=True, init=False)
class Run:
    """Paths of a run and what is written into them.

    Args:
        path: the folder, which need not be there yet; another Run is the same one.
        trust: let its recipe run code, also if it may be from elsewhere (`lorarlhf.recipe.trust`).
    """

    path: Path
    trust: bool = field(compare=False)

    def __init__(self, path: Run | Path | str, trust: bool = False) -> None:
        object.__setattr__(self, "path", path.path if isinstance(path, Run) else Path(path))
        object.__setattr__(self, "trust", trust or (isinstance(path, Run) and path.trust))

    def stage(self, stage: Stage) -> Path:
        """The stage's folder, there or not.

        Raises:
            UserError: a link stands in its place. What a run from elsewhere points to is not read, nor written to.
        """
        folder = self.path / stage
        if folder.is_symlink():
            raise UserError(
                f"{folder}: is a link, and all of a run lies in its folder; put what it leads to in its place, or give "
                "another --output-dir"
            )
        return folder

    def has_adapter(self, stage: Stage) -> bool:
        """True once the stage has finished: its adapter is written last but for the summary."""
        return (self.stage(stage) / "adapter_config.json").is_file()

    def is_interrupted(self, stage: Stage) -> bool:
        """True if the stage was begun and has no adapter yet."""
        begun = (self.stage(stage) / RECIPE).is_file() or bool(numbered_checkpoints(self.stage(stage)))
        return begun and not self.has_adapter(stage)

    def adapter(self, stage: Stage, checkpoint: str | int = BEST) -> Path:
        """Folder of an adapter that the stage has made.

        Args:
            checkpoint: `best` is what the stage keeps, `last` the newest checkpoint's, a number that of an iteration
                (of sft and reward: of a step).

        Raises:
            UserError: the stage has not finished, or there is no such checkpoint.
        """
        if checkpoint != BEST:
            return chosen_checkpoint(self.stage(stage), str(checkpoint)) / STAGES[stage].role
        if not self.has_adapter(stage):
            raise UserError(
                f"{self.stage(stage)}: no adapter there; run `lorarlhf {stage} --recipe {self._recipe_or_name()} "
                f"--output-dir {self.path}` first"
            )
        return self.stage(stage)

    def last_stage(self) -> Stage:
        """The last stage that has an adapter. Raises UserError if none has."""
        self._recipe_file()  # says so if this is no run
        for stage in LAST_FIRST:
            if self.has_adapter(stage):
                return stage
        raise UserError(
            f"{self.path}: no stage of this run has an adapter; run "
            f"`lorarlhf run --recipe {self._recipe_or_name()} --output-dir {self.path}` first"
        )

    def write_recipe(self, recipe: Recipe, stage: Stage | None = None) -> None:
        """Write the recipe of the run, which is that of its latest stage, and beside it that of the stage.

        Whoever has come so far with it may run its code: that is remembered, for later commands on this run.
        """
        remember(recipe)
        for folder in (self.path, *([self.stage(stage)] if stage else [])):
            write_file(folder / RECIPE, dump_recipe(recipe))

    def read_recipe(
        self,
        named: Mapping[str, Option] | None = None,
        sets: Sequence[str] = (),
        stage: Stage | None = None,
        runs_functions: bool = True,
    ) -> Recipe:
        """What the run, or one stage of it, was run with, with these on top (see `load_recipe`).

        Later stages may have been told otherwise: whoever describes a stage or goes on from it names it.
        """
        return load_recipe(str(self._recipe_file(stage)), named, sets, self.trust, True, runs_functions)

    def _recipe_file(self, stage: Stage | None = None) -> Path:
        path = self.path / RECIPE
        if stage is not None and (self.stage(stage) / RECIPE).is_file():  # stages of earlier versions have none
            path = self.stage(stage) / RECIPE
        if not path.is_file():
            raise UserError(
                f"{self.path}: not a run, there is no recipe.yaml; give the --output-dir of an earlier stage"
            )
        return path

    def _recipe_or_name(self) -> str:
        """What --recipe takes to do another stage of this run."""
        return str(self.path / RECIPE) if (self.path / RECIPE).is_file() else "NAME"

    def write_summary(self, stage: Stage, summary: dict[str, Any]) -> None:
        """Write what the stage reports: the last of its files, which says that it has finished."""
        write_json(self.stage(stage) / SUMMARY, summary)

    def read_summary(self, stage: Stage) -> dict[str, Any]:
        """What the stage reported, or nothing if it has not finished.

        Raises:
            UserError: it cannot be read, or counts in something else than whole numbers.
        """
        path = self.stage(stage) / SUMMARY
        summary = read_object(path) if path.is_file() else {}
        for key in COUNTS:
            if type(summary.get(key, 0)) is not int:
                raise UserError(f"{path}: {key} is {show(summary[key])}, no whole number; fetch or make it again")
        return summary


def of_adapter(adapter: Path) -> dict[str, str]:
    """What figures that are measured on an adapter say of which it was; nothing where there are no weights."""
    return {MEASURED: hash_file(adapter / WEIGHTS)} if (adapter / WEIGHTS).is_file() else {}


def is_current(measured: Mapping[str, Any], adapter: Path) -> bool:
    """Whether figures are of the weights that lie in an adapter's folder now.

    Those from before a --resume that trained on are not. Where they do not say (they are of an earlier lorarlhf), or
    there are no weights yet, it is taken for granted.
    """
    return MEASURED not in measured or of_adapter(adapter).get(MEASURED, measured[MEASURED]) == measured[MEASURED]


def other_test_data(stage: Stage, flag: str, dataset: str) -> dict[str, Option]:
    """What of a recipe is different where a stage is tested on other data: all of them, however few the run takes."""
    return {
        f"data.{STAGES[stage].data_key}_test": Option(flag, source_value(dataset)),
        "data.eval_examples": Option(flag, None),
    }


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file, whole or not at all; its folder is made if need be."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

"""Adapters, chat templates and runs as somebody might make them who means harm: see `tests/elsewhere.py`.

None may run a program or import a module that it names, nor change a file outside the folder it was called from; each
is refused in one line, or used as what it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from unittest import mock

from bad_calls import Call, in_process, nothing_trained, wrong_with
from demo_runs import save_random_adapter, small_recipe, small_sets
from elsewhere import (
    COMMANDS,
    CONFIGS,
    DAMAGED_CONFIGS,
    DAMAGED_WEIGHTS,
    FUNCTION,
    MODULE,
    REMOTE,
    SPOILT,
    TEMPLATES,
    WITHOUT_FUNCTIONS,
    changes_outside,
    rewrite_config,
    spoil_weights,
)

from fault_parts.tally import Tally, Task
from lorarlhf.recipe.load import dump_recipe
from lorarlhf.recipe.shipped import shipped_folder
from lorarlhf.run import Run

ROWS = [
    {"prompt": [{"role": "user", "content": f"Question {n}?"}]}
    | {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "a"), ("rejected", "b"))}
    for n in range(30)
]


def tasks(options: argparse.Namespace) -> dict[str, Task]:
    return {"adapters": try_adapters, "templates": try_templates, "runs": try_runs, "links": try_links}


DEMO_MODEL = shipped_folder("data") / "demo" / "model"


class Project:
    """The current folder of a probe, with a module whose import leaves a trace, and a run that came from elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.tally = Tally()
        self.made = Run(folder / "made-by-another")
        recipe = small_recipe(folder / "theirs", 'ppo.reward_functions=["mine:score"]')
        self.plain = dump_recipe(small_recipe(folder / "theirs"))
        with mock.patch.dict(os.environ, XDG_STATE_HOME=str(folder / "state-of-another")):
            self.made.write_recipe(recipe, "ppo")
        for stage in ("reward", "ppo"):
            save_random_adapter(recipe, self.made, stage)

    @contextlib.contextmanager
    def current(self) -> Iterator[Path]:
        """A new current folder."""
        self.folder.mkdir()
        (self.folder / "mine.py").write_text(MODULE)
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        sys.modules.pop("mine", None)
        shutil.copytree(self.made.path, self.folder / "unpacked")
        with contextlib.chdir(self.folder), mock.patch.object(tempfile, "tempdir", str(self.folder)):
            yield self.folder
        shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def probed(self, name: str) -> Iterator[Path]:
        """The same; whatever runs or is written outside in the block is told."""
        with self.current() as here:
            with changes_outside(here) as changes:
                yield here
            if wrong := [*changes.seen, *(path.name for path in here.rglob("*ran"))]:
                self.tally.failures.append(f"{name}: {'; '.join(wrong)}")

    def without_code(self) -> None:
        """From now on in the block, the run's recipes name none."""
        for file in (self.folder / "unpacked").rglob("recipe.yaml"):
            file.write_text(self.plain)

    def call(self, name: str, command: str, ends: tuple[int | None, ...] = (2,)) -> None:
        """Count a call, which is to end so, where it is refused, in a line."""
        code, wrong = wrong_with(Call(command.split()), self.folder)
        if not wrong and code not in ends:
            wrong = f"{command} ends with {code}"
        self.tally.add(wrong and f"{name}: {wrong}")
        self.tally.more["refused" if code == 2 else "taken"] += 1


COMMANDS_OF_REWARD = (
    "score rows.jsonl --run unpacked --out out.jsonl",
    "export --run unpacked --stage reward --to out",
)


def try_adapters(folder: Path) -> Tally:
    project, commands = Project(folder), cycle(COMMANDS_OF_REWARD)
    spoils: dict[str, Callable[[Path], object]] = {
        f"{key} {str(value)[:40]}": partial(rewrite_config, **{key: value}) for key, value in CONFIGS
    }
    for file, damaged in (("adapter_config.json", DAMAGED_CONFIGS), ("adapter_model.safetensors", DAMAGED_WEIGHTS)):
        spoils |= {f"{file} {how}": partial(_write, file, content) for how, content in damaged.items()}
    for kind, value, _ in SPOILT:
        spoils |= {
            f"{kind} {value} in {part}": partial(_spoil, part, kind, value) for part in ("lora_A", "score.weight")
        }
    for command in COMMANDS_OF_REWARD:
        with project.probed("as it was"):
            project.without_code()
            project.call("as it was", command, ends=(0,))
    for name, spoil in spoils.items():
        with project.probed(name) as here:
            project.without_code()
            spoil(here / "unpacked" / "reward")
            project.call(name, next(commands))
    return project.tally


def _write(name: str, content: bytes, adapter: Path) -> None:
    (adapter / name).write_bytes(content)


def _spoil(part: str, kind, value: float, adapter: Path) -> None:
    spoil_weights(adapter, part, kind, value)


def try_templates(folder: Path) -> Tally:
    """A template as the recipe names it, and as the base model brings it."""
    project, own = Project(folder), (DEMO_MODEL / "chat_template.jinja").read_text()
    for number, template in enumerate((own, *TEMPLATES)):
        name, is_own = f"template {number}", template == own
        with project.probed(name) as here, nothing_trained():
            shutil.copytree(DEMO_MODEL, here / "model")
            (here / "own.jinja").write_text(template)
            (here / "model" / "chat_template.jinja").write_text(template)
            reward = "reward --recipe demo --dataset rows.jsonl --output-dir out --set"
            project.call(f"{name}, of a recipe", f"{reward} data.chat_template=own.jinja", (None,) if is_own else (2,))
            # A model that brings an empty template brings none.
            ends = (None,) if is_own or not template else (2,)
            project.call(f"{name}, of a model", f"{reward} model.name=model", ends)
    return project.tally


def try_runs(folder: Path) -> Tally:
    """Code that recipes and runs name, and what runs hold in the place of their files."""
    project = Project(folder)
    for key in (FUNCTION, REMOTE):
        recipe = folder / "downloaded.yaml"
        recipe.write_text(f"extends: demo\n{key}")
        for command in (*COMMANDS, *(WITHOUT_FUNCTIONS if key == REMOTE else ())):
            with project.probed(command) as here:
                if key == REMOTE:
                    project.without_code()
                    for file in (here / "unpacked").rglob("recipe.yaml"):
                        file.write_text(project.plain.replace("trust_remote_code: false", "trust_remote_code: true"))
                project.call(command, command.format(recipe=recipe))
    with project.probed("as it was"):
        project.without_code()
        project.call("as it was", "evaluate --run unpacked", ends=(0,))
    for name, place in PLACES.items():
        for what, put in PUT.items():
            with project.probed(f"{what} as {name}") as here:
                project.without_code()
                path = here / "unpacked" / place
                path.unlink(missing_ok=True)
                put(path)
                project.call(f"{what} as {name}", "evaluate --run unpacked", ends=(0, 2) if name in SPARED else (2,))
    return project.tally


PLACES = {
    "recipe": "recipe.yaml",
    "recipe of the stage": "ppo/recipe.yaml",
    "config": "ppo/adapter_config.json",
    "weights": "reward/adapter_model.safetensors",
    "note of the base": "reward/base.json",
    "summary": "ppo/summary.json",
}
SPARED = ("recipe of the stage", "config", "note of the base", "summary")  # a run that lacks it is one all the same
PUT: dict[str, Callable[[Path], None]] = {
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a circle": lambda path: path.symlink_to(path.name),
}


LINKED = (
    *("recipe.yaml", "run.lock", "{}/recipe.yaml", "{}/metrics.jsonl", "{}/summary.json", "{}/adapter_config.json"),
    *("{}/adapter_model.safetensors", "{}/.part", "{}/checkpoint-1"),
)


def try_links(folder: Path) -> Tally:
    """A finished run in which links stand that lead outside, resumed: what they lead to stays as it is."""
    project = Project(folder)
    sets = [part for text in small_sets(folder / "data") for part in ("--set", text)]
    for stage in ("sft", "reward", "ppo"):
        command = [stage, "--recipe", "demo", "--output-dir", "unpacked", *sets]
        outside = folder / f"outside-{stage}"
        outside.mkdir()
        with project.current() as here:
            run = here / "unpacked"
            shutil.rmtree(run / stage, ignore_errors=True)
            (run / "ppo" / "recipe.yaml").unlink(missing_ok=True)  # begun with other code
            ended = [in_process(command)]
            theirs = {name: _link(run / name.format(stage), outside / str(at)) for at, name in enumerate(LINKED)}
            ended.append(in_process([*command, "--resume"]))
            wrong = [f"exit {code}: {said}" for code, said in ended if code]
            wrong += [name for at, name in enumerate(LINKED) if (outside / str(at)).read_bytes() != theirs[name]]
        project.tally.add("; ".join(wrong) and f"{stage}: {'; '.join(wrong)}")
        project.tally.more["links"] += len(LINKED)
    return project.tally


def _link(path: Path, to: Path) -> bytes:
    """Put a link in a file's place, which leads to what the file held, or to something if there was none."""
    held = path.read_bytes() if path.is_file() else b"theirs"
    to.write_bytes(held)
    path.unlink(missing_ok=True)
    path.symlink_to(to)
    return held

"""Runs whose earlier stages are done."""

import shutil

import pytest
from demo_runs import (
    save_random_adapter,
    small_recipe,
)

from lorarlhf.run import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose sft and reward stages are done."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = small_recipe(folder)
    run = Run(folder / "run")
    for stage in ("sft", "reward"):
        save_random_adapter(recipe, run, stage)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """`run("reward")`: a fresh run with the stages named done."""

    def make(*stages, name="run"):
        for stage in stages:
            shutil.copytree(finished.stage(stage), tmp_path / name / stage)
        return Run(tmp_path / name)

    return make

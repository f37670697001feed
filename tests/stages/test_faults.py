"""A fault at any write, rename or flush of a stage or of an export: what is left goes on as if there had been none."""

from __future__ import annotations

import shutil

import pytest
from write_faults import TRAIN, Begun, export_fails_and_goes_on

SAMPLED = {"sft": 2, "reward": 1, "ppo": 3}  # points that `make test` tries; `make test-all` tries each


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return Begun.make(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def uninterrupted(begun, tmp_path_factory):
    """`uninterrupted(stage)`: what it leaves without a fault, and at how many points it could have failed."""
    known = {}

    def make(stage):
        if stage not in known:
            known[stage] = begun.uninterrupted(stage, tmp_path_factory.mktemp(stage) / "run")
            assert [fault for _, fault in known[stage][0]["checkpoints"]] == [None, None]
        return known[stage]

    return make


@pytest.mark.parametrize(("stage", "number"), [(stage, n) for stage, count in SAMPLED.items() for n in range(count)])
def test_a_fault_in_a_stage(stage, number, begun, uninterrupted, tmp_path):
    expected, points = uninterrupted(stage)
    assert points > 40
    point = points * (2 * number + 1) // (2 * SAMPLED[stage])
    assert begun.fails_and_goes_on(stage, point, tmp_path / "run", expected) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAIN)
def test_a_fault_at_any_point_of_a_stage(stage, begun, uninterrupted, tmp_path):
    expected, points = uninterrupted(stage)
    for point in range(points):
        assert begun.fails_and_goes_on(stage, point, tmp_path / str(point), expected) == []
        shutil.rmtree(tmp_path / str(point))


def test_a_fault_at_any_point_of_an_export(begun, tmp_path):
    wrong = list(export_fails_and_goes_on(begun, tmp_path))
    assert len(wrong) > 20
    assert [text for texts in wrong for text in texts] == []

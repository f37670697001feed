"""sft and reward on two processes (gloo, on the CPU) do what they do on one with the same rows a step."""

import pytest
import torch
from demo_runs import read_jsonl, small_sets, untimed
from forked import Forked
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments

from lorarlhf.run import Run
from lorarlhf.training import processes
from lorarlhf.training.arguments import one_device
from lorarlhf.training.processes import average_gradients

# 33 demonstrations and 37 pairs: the last step of an epoch has a row or five, which two processes share unevenly.
SETTINGS = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    small_sets(folder / "data")
    pairs = folder / "data" / "preferences.jsonl"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:37]))
    return folder


def start(folder, stage, name, count, *options, **settings):
    """The stage on so many processes; `settings` are keys of its section."""
    sets = [f"data.{path.stem}={path}" for path in sorted((folder / "data").glob("*.jsonl"))]
    sets += [text for text in small_sets(folder / "unused") if not text.startswith("data.") or "test_size" in text]
    sets += [f"{stage}.{key}={value}" for key, value in {**SETTINGS, **settings}.items()]
    arguments = [stage, "--recipe", "demo", "--output-dir", str(folder / name)]
    arguments += [part for text in sets for part in ("--set", text)]
    return Forked([*arguments, *options], folder / f"{name}-said", count)


def finish(*args, **settings):
    """Stdout of the stage's first process, done."""
    forked = start(*args, **settings)
    assert set(forked.finish()) == {0}, forked.said("err")[-3000:]
    return forked.said("out")


@pytest.fixture(scope="module", params=["sft", "reward"])
def one(request, folder):
    """Stage, and the run of it on one process that sums two batches a step."""
    finish(folder, request.param, "one", 1, gradient_accumulation_steps=2)
    return request.param, Run(folder / "one")


def assert_same(stage, one, other):
    """To rounding, but for the epoch, which is counted in batches; and each row once."""
    a, b = (load_file(run.stage(stage) / "adapter_model.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-3, atol=2e-5)
    rows = [list(map(untimed, read_jsonl(run.stage(stage) / "metrics.jsonl"))) for run in (one, other)]
    rows.append([untimed(one.read_summary(stage))])
    rows.append([untimed(other.read_summary(stage))])
    # A row that no process but the model needs has tokens, too, and padding is of each process's own passes.
    loose = {"num_tokens", "eval_num_tokens", "epoch", "padding", "eval_padding"}
    for left, right in ((rows[0], rows[1]), (rows[2], rows[3])):
        assert [row.get("step") for row in left] == [row.get("step") for row in right]
        for x, y in zip(left, right, strict=True):
            assert x.keys() == y.keys()
            for key in x.keys() - loose:
                assert list(leaves(y[key])) == [
                    leaf if isinstance(leaf, str) else pytest.approx(leaf, rel=1e-3, abs=1e-4)
                    for leaf in leaves(x[key])
                ], key


def leaves(value):
    """Numbers and texts within lists and dictionaries, in their order."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def test_two_processes_do_what_one_does(folder, one):
    stage, expected = one
    out = finish(folder, stage, "two", 2)
    assert_same(stage, expected, Run(folder / "two"))
    assert sum(line.startswith(f"{stage}: ") for line in out.splitlines()) == 1
    assert not list((folder / "two").glob(f"{stage}.*"))


def test_killed_and_resumed_on_another_number_of_processes(folder, one):
    """Two are killed; one goes on, and takes twice as many batches a step."""
    stage, expected = one
    run = Run(folder / "killed")
    forked = start(folder, stage, "killed", 2)
    forked.wait_for((run.stage(stage) / "checkpoint-2" / "manifest.json").is_file)
    forked.kill()
    assert not run.has_adapter(stage)
    finish(folder, stage, "killed", 1, "--resume")
    assert_same(stage, expected, run)


def test_a_number_of_processes_that_does_not_fit_is_refused(folder, one):
    stage, _ = one
    forked = start(folder, stage, "one", 1, "--resume", per_device_train_batch_size=3, max_steps=9)
    assert forked.finish() == [2]
    assert "a step was of 8 rows, and 1 processes take 3 at a time" in forked.said("err").splitlines()[-1]


def test_other_commands_are_refused(tmp_path):
    forked = Forked(["evaluate", "--run", str(tmp_path)], tmp_path / "said", 2)
    assert forked.finish() == [2, 2]
    refusal = "Error: evaluate: runs in one process; call `lorarlhf evaluate` without a launcher\n"
    assert [forked.said("err", rank) for rank in (0, 1)] == [refusal, ""]


def test_gradients_are_averaged_bucket_by_bucket(monkeypatch):
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3, 2, 4, 1)]
    for k, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(k + 1))
    parameters.append(nn.Parameter(torch.zeros(2)))  # without a gradient
    sizes = []

    def all_reduce(flat):
        sizes.append(len(flat))
        flat += 10  # the other process's

    monkeypatch.setattr(processes, "BUCKET", 5)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    average_gradients(parameters, 2)
    assert sizes == [5, 5]
    assert [parameter.grad[0].item() for parameter in parameters[:-1]] == [5.5, 6.0, 6.5, 7.0]
    assert parameters[-1].grad is None


def test_one_device_even_where_more_are_visible(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert one_device(args).n_gpu == 0
    args._n_gpu = 2
    assert one_device(args).n_gpu == 1

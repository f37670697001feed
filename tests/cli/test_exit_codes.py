"""What is wrong with a call, and how a command that fails says so: exit codes and messages."""

import re
from pathlib import Path

import pytest

from lorarlhf.errors import Stopped

BAD_RECIPE = "extends: demo\nppo:\n  kl_coeff: 0.1\n  batch_size: many\nreward:\n  learning_rate: .nan\n"
GOOD_ROW = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
FAULTS = {
    "unknown recipe": (["sft", "--recipe", "dmo"], ["dmo: no recipe of that name; did you mean demo"]),
    "no recipe file": (["sft", "--recipe", "mine.yaml"], ["mine.yaml: no such recipe file"]),
    "bad recipe": (
        ["ppo", "--recipe", "bad.yaml"],
        [
            r"bad\.yaml:3: ppo\.kl_coeff: .*kl_coef\b",
            r"bad\.yaml:4: ppo\.batch_size: .*many",
            r"bad\.yaml:6: reward\.learning_rate: ",
        ],
    ),
    "set without value": (["ppo", "--recipe", "demo", "--set", "ppo.kl_coef"], ["--set ppo.kl_coef: not of the form"]),
    "set of unknown key": (
        ["ppo", "--recipe", "demo", "--set", "ppo.kl_coff=1"],
        [r"--set ppo\.kl_coff=1: unknown key; did you mean kl_coef\?"],
    ),
    "set of wrong type": (
        ["ppo", "--recipe", "demo", "--set", "ppo.iterations=true", "--set", "seed=-1"],
        [r"--set ppo\.iterations=true: expected a whole number, got true", r"--set seed=-1: .*-1"],
    ),
    "unknown model": (
        ["sft", "--recipe", "demo", "--model", "no/such/model"],
        [r"model\.name: cannot load 'no/such/model': .*give a Hub id you have access to, or a local folder"],
    ),
    "empty model folder": (
        ["reward", "--recipe", "demo", "--model", "empty"],
        [r"model\.name: cannot load 'empty': .*the folder needs config\.json"],
    ),
    "no data file": (["reward", "--recipe", "demo", "--dataset", "none.jsonl"], [r"none\.jsonl: "]),
    "malformed row": (["reward", "--recipe", "demo", "--dataset", "broken.jsonl"], [r"broken\.jsonl:2: "]),
    "unpaired row": (["reward", "--recipe", "demo", "--dataset", "unpaired.jsonl"], [r"unpaired\.jsonl:3: "]),
    "empty data": (["sft", "--recipe", "demo", "--dataset", "empty.jsonl"], [r"empty\.jsonl: .*empty"]),
    "no reward adapter": (
        ["ppo", "--recipe", "demo", "--output-dir", "runs/new"],
        ["runs/new/reward: no reward adapter there; run `lorarlhf reward` with this recipe and --output-dir runs/new"],
    ),
    "no such reward adapter": (
        ["ppo", "--recipe", "demo", "--reward", "empty"],
        [r"--reward empty: no adapter_config\.json there"],
    ),
    "no reward function": (
        ["ppo", "--recipe", "demo", "--set", 'ppo.reward_functions=["nowhere:f"]'],
        ["ppo.reward_functions: cannot import 'nowhere:f'"],
    ),
    "nothing to resume": (["sft", "--recipe", "demo", "--resume"], ["runs/demo/sft: no checkpoint to resume from"]),
    "an optimiser of another machine": (
        ["sft", "--recipe", "demo", "--set", "sft.optim=paged_adamw_8bit"],
        [r"sft\.optim: paged_adamw_8bit needs a CUDA GPU; use --set sft\.optim=adamw_torch"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_user_is_exit_2_and_a_line_each(command, fault, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text(BAD_RECIPE)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").write_text(GOOD_ROW + '{"prompt": "a", \n')
    (tmp_path / "unpaired.jsonl").write_text(2 * GOOD_ROW + '{"prompt": "a", "chosen": "b", "rejected": ""}\n')
    args, patterns = FAULTS[fault]
    code, out, err = command(*args)
    assert code == 2, err
    lines = err.splitlines()
    assert len(lines) == len(patterns), err
    assert lines[0].startswith("Error: ")
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.search(pattern, line), line
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sft"], "--recipe: missing; give a name from"),
        (["ppo", "--resume"], "--output-dir: missing; without --recipe it says which run"),
        (["run"], "--recipe: missing; give a name from `lorarlhf recipes list`"),
        (["fly"], "No such command 'fly'"),
        (["sft", "--recipe", "demo", "--fast"], "No such option: --fast"),
        (["demo", "--seed", "x"], "--seed"),
        (["export", "--run", "r"], "Missing option '--to'"),
    ],
)
def test_a_wrong_call_is_exit_2(command, args, message):
    code, out, err = command(*args)
    assert code == 2
    assert message in re.sub(r"\x1b\[[0-9;]*m", "", err)
    assert "Traceback" not in out + err


@pytest.mark.parametrize("verbose", [["--verbose", "sft"], ["sft", "--verbose"]])
def test_verbose_adds_the_traceback(command, verbose):
    code, _, err = command(*verbose, "--recipe", "dmo")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("Error: dmo: no recipe of that name")


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("the disk\nis full"), "Error: RuntimeError: the disk (--verbose shows where)"),
        (KeyError("reward"), "Error: KeyError: 'reward' (--verbose shows where)"),
        (OutOfMemoryError("no room"), "Error: OutOfMemoryError: no room (lower ppo.micro_batch_tokens, "),
        (
            OSError(28, "No space left on device", "out/x"),
            "Error: OSError: [Errno 28] No space left on device: 'out/x' (make",
        ),
    ],
)
def test_anything_else_is_exit_1(command, monkeypatch, error, message):
    def fail(*args):
        raise error

    monkeypatch.setattr("lorarlhf.stages.sft.train_sft", fail)
    code, _, err = command("sft", "--recipe", "demo")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith(message)
    assert "Traceback" in command("sft", "--recipe", "demo", "--verbose")[2]


@pytest.mark.parametrize(
    ("error", "options", "code", "message"),
    [
        (
            KeyboardInterrupt(),
            [],
            130,
            "stopped; to go on, if there is a checkpoint: lorarlhf sft --recipe demo --resume",
        ),
        (Stopped("after step 3", 15), [], 143, "after step 3; to go on: lorarlhf sft --recipe demo --resume"),
        (Stopped("after step 3", 1), ["--resume"], 129, "after step 3; to go on: lorarlhf sft --recipe demo --resume"),
    ],
)
def test_a_signal_is_told_by_the_exit_code_and_how_to_go_on(command, monkeypatch, error, options, code, message):
    def stop(*args):
        raise error

    monkeypatch.setattr("lorarlhf.stages.sft.train_sft", stop)
    exit_code, _, err = command("sft", "--recipe", "demo", *options)
    assert exit_code == code
    (line,) = err.splitlines()
    assert line.startswith(f"Error: {message}")
    assert line.count("--resume") == 1


@pytest.mark.parametrize("options", [[], ["--output-dir", "mine"], ["--output-dir=mine", "--seed", "3"]])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped("after iteration 3", 15)])
def test_a_demo_that_was_stopped_goes_on_as_a_run(command, monkeypatch, error, options):
    folder = "mine" if options else "runs/demo"

    def stop(recipe, run, resume, evaluate):
        run.write_recipe(recipe, "reward")
        raise error

    monkeypatch.setattr("lorarlhf.stages.demo.run_recipe", stop)
    _, _, err = command("demo", *options)
    line = err.splitlines()[-1]
    assert line.endswith(f"; to go on: lorarlhf run --output-dir {folder}")
    told = []
    monkeypatch.setattr("lorarlhf.stages.pipeline.run_recipe", lambda *args: told.append(args))
    monkeypatch.setattr("lorarlhf.run.Run.last_stage", lambda _: "reward")
    code, _, err = command(*line.partition("to go on: lorarlhf ")[2].split())
    assert code == 0, err
    ((recipe, run, resume),) = told
    assert (recipe.seed, run.path, resume) == (3 if "--seed" in options else 0, Path(folder), True)


def test_a_demo_that_has_not_begun_has_nothing_to_go_on_with(command, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lorarlhf.stages.demo.run_recipe", stop)
    assert command("demo")[2].splitlines()[-1] == "Error: stopped"


def test_a_fault_in_the_script(script, tmp_path):
    code, out, err = script(tmp_path, "ppo", "--recipe", "dmo")
    assert (code, out) == (2, "")
    assert err.startswith("Error: dmo: no recipe of that name")
    assert len(err.splitlines()) == 1

"""`lorarlhf` as a person or a script meets it: exit codes, messages, files."""

import json
import logging
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from demo_runs import read_jsonl, save_random_adapter, small_recipe, small_sets
from forked import Forked

from lorarlhf.cli.main import main
from lorarlhf.errors import Stopped
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.shipped import list_recipes
from lorarlhf.run import Run

STAGES = ["sft", "reward", "ppo"]
SCRIPT = Path(sys.executable).with_name("lorarlhf")
# Imported at the start of the process: whoever opens a connection or looks up a name is written down and stopped.
NO_NETWORK = """
import os, socket, traceback

def refuse(*args, **kwargs):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        traceback.print_stack(file=file)
    raise OSError("no network in tests")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`command(*args)`: exit code, stdout and stderr of a call in this process, from an empty folder."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")  # main sets it: put back what was there
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("lorarlhf").level

    def call(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["lorarlhf", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    yield call
    logging.getLogger("lorarlhf").setLevel(level)


def as_options(sets):
    return [part for text in sets for part in ("--set", text)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a person's own shell: Hugging Face online, telemetry not refused, and a network that tells on whoever asks."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    hidden = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "NETWORK_LOG": str(folder / "network.log"), "COLUMNS": "200"}


def script(environment, cwd, *args, program=(str(SCRIPT),)):
    done = subprocess.run([*program, *map(str, args)], env=environment, cwd=cwd, capture_output=True, text=True)
    network = Path(environment["NETWORK_LOG"])
    assert not network.exists(), network.read_text()
    return done.returncode, done.stdout, done.stderr


# What a fault looks like

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
        ["runs/new/reward: no reward adapter there; run `lorarlhf reward --recipe NAME --output-dir runs/new` first"],
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
        (["run"], "--output-dir: missing"),
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
    code, _, err = command(*line.partition("to go on: lorarlhf ")[2].split())
    assert code == 0, err
    ((recipe, run, resume),) = told
    assert (recipe.seed, run.path, resume) == (3 if "--seed" in options else 0, Path(folder), True)


def test_a_demo_that_has_not_begun_has_nothing_to_go_on_with(command, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lorarlhf.stages.demo.run_recipe", stop)
    assert command("demo")[2].splitlines()[-1] == "Error: stopped"


def test_a_stage_goes_on_with_the_recipe_of_its_run(command, monkeypatch, tmp_path):
    Run(tmp_path / "mine").write_recipe(load_recipe("demo", sets=["seed=7"]), "sft")
    Run(tmp_path / "mine").write_recipe(load_recipe("demo", sets=["seed=8"]), "reward")
    told = []
    monkeypatch.setattr("lorarlhf.stages.sft.train_sft", lambda *args: told.append(args) or {"eval_examples": 0})
    code, out, _ = command("sft", "--resume", "--output-dir", "mine", "--set", "sft.max_steps=5")
    assert code == 0
    ((recipe, run, resume),) = told
    assert (recipe.seed, recipe.sft.max_steps, run.path, resume) == (7, 5, Path("mine"), True)
    assert "adapter in mine/sft" in out


def test_a_log_file_takes_what_is_said_and_the_terminal_may_close(tmp_path):
    log = tmp_path / "log.txt"
    forked = Forked(["sft", "--recipe", "demo", "--dataset", str(tmp_path), "--log-file", str(log)], tmp_path / "out")
    assert forked.finish() == [2]
    assert str(tmp_path) in log.read_text()
    assert forked.said("err") + forked.said("out") == ""


# Dry runs and help


def test_dry_runs_of_recipes_from_the_hub_and_help_load_nothing_heavy(environment, tmp_path):
    from_the_hub = [info.name for info in list_recipes() if info.name not in ("demo", "qwen3-1.7b-gsm8k-8gb")]
    program = f"""
import sys
from lorarlhf.cli.main import main
for recipe in {from_the_hub}:
    for stage in {STAGES}:
        sys.argv = ["lorarlhf", stage, "--recipe", recipe, "--dry-run"]
        try:
            main()
        except SystemExit as exit_:
            assert not exit_.code, (recipe, stage)
sys.argv = ["lorarlhf", "--help"]
try:
    main()
except SystemExit as exit_:
    assert not exit_.code
heavy = {{"torch", "transformers", "peft", "trl", "datasets", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    code, out, err = script(environment, tmp_path, "-c", program, program=(sys.executable,))
    assert (code, err) == (0, "")
    assert out.count("would load ") == out.count("memory       see") == len(STAGES) * len(from_the_hub) >= 24
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_done(command, tmp_path):
    (tmp_path / "my.jsonl").write_text('{"prompt": "How much are the apples?"}\n')
    code, out, err = command(
        *("ppo", "--recipe", "demo", "--model", "my/model", "--dataset", "my.jsonl", "--output-dir", "here"),
        *("--set", "ppo.kl_coef=0.25", "--reward", "my/reward", "--dry-run"),
    )
    assert (code, err) == (0, "")
    assert "  kl_coef: 0.25\n" in out
    assert "would load   my/model (nf4), once" in out
    assert "would start  from the bare base model" in out
    assert "would score  with my/reward, 0 functions" in out
    assert "would train  ppo on my.jsonl" in out
    assert "would write  here/ppo" in out
    assert "would update policy and critic (PPO)" in out
    assert list(tmp_path.iterdir()) == [tmp_path / "my.jsonl"]


def test_a_dry_run_says_what_is_misspelt(command):
    code, _, err = command("ppo", "--recipe", "demo", "--dataset", "my.jsonl", "--dry-run")
    assert (code, err) == (2, "Error: my.jsonl: no such file; check the path\n")


def test_a_dry_run_knows_how_many_rows_are_wanted(command):
    wanted = ("--set", "data.max_examples=2000", "--set", "data.eval_examples=50")
    out = command("reward", "--recipe", "demo", "--dataset", "my.jsonl", *wanted, "--dry-run")[1]
    assert "would train  reward on at most 2,000 examples of my.jsonl" in out
    assert "would test   on at most 50 held-out examples" in out
    assert "at most" not in command("reward", "--recipe", "demo", "--dry-run")[1]


def test_a_dry_run_knows_what_has_no_critic(command):
    out = command("ppo", "--recipe", "demo", "--set", "ppo.advantage_estimator=rloo", "--dry-run")[1]
    assert "would update the policy, without a critic (RLOO, 4 responses to each prompt)" in out


def test_a_dry_run_starts_from_sft_if_it_is_there(command, tmp_path):
    (tmp_path / "runs" / "demo" / "sft").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "sft" / "adapter_config.json").touch()
    assert f"would start  from {Path('runs/demo/sft')}" in command("ppo", "--recipe", "demo", "--dry-run")[1]


@pytest.mark.parametrize(("stage", "key"), [("sft", "sft"), ("reward", "preferences"), ("ppo", "prompts")])
def test_a_dataset_replaces_the_recipes_own_and_its_held_out_part(command, tmp_path, stage, key):
    (tmp_path / "mine.csv").write_text("prompt,chosen,rejected,completion\na,b,c,d\n")
    out = command(stage, "--recipe", "demo", "--dataset", "mine.csv", "--dry-run")[1]
    assert f"  {key}: mine.csv\n" in out
    assert f"  {key}_test: null\n" in out


def test_help_is_quick(environment, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, out, _ = script(environment, tmp_path, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0
    assert all(name in out for name in ("demo", "sft", "reward", "ppo", "export", "recipes"))
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.0, "seconds of computing"


def test_version(command):
    code, out, _ = command("--version")
    assert code == 0
    assert re.fullmatch(r"lorarlhf \d+\.\d+\.\d+\n", out)


# Stages that run


def test_the_stages_one_after_another(command, tmp_path, monkeypatch):
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *args, **kwargs: pytest.fail("phoned home"))
    monkeypatch.delenv("CI", raising=False)  # where it is set, TRL keeps quiet by itself
    options = ["--recipe", "demo", *as_options(small_sets(tmp_path / "data")), "--output-dir", "out"]
    for stage in STAGES:
        code, out, err = command(stage, *options)
        assert code == 0, err
        folder = tmp_path / "out" / stage
        assert json.loads((folder / "summary.json").read_text())["seconds"] > 0
        assert len(read_jsonl(folder / "metrics.jsonl")) >= 3
        assert "\x1b" not in out
        assert out.splitlines()[0].startswith(f"{stage} ")
        assert f"adapter in {Path('out') / stage}" in out.splitlines()[-1]
    assert "held-out reward" in out
    assert (tmp_path / "out" / "recipe.yaml").is_file()
    assert Run(tmp_path / "out").read_summary("ppo")["reference"] == "sft"


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_nothing_held_out_is_said(command, tmp_path, stage):
    sets = [*small_sets(tmp_path / "data"), "data.test_size=0", "data.preferences_test=null"]
    code, out, err = command(stage, "--recipe", "demo", *as_options(sets))
    assert code == 0, err
    assert f"{stage}: no held-out examples; adapter in" in out


def test_ppo_with_nothing_held_out_is_refused(command, tmp_path):
    sets = [*small_sets(tmp_path / "data"), "data.test_size=0", "data.prompts_test=null"]
    sets += ['ppo.reward_functions=["demo_runs:letter_e"]', "requires=[demo_runs]"]
    code, _, err = command("ppo", "--recipe", "demo", *as_options(sets))
    assert code == 2
    assert "ppo.eval_every: data.test_size 0 leaves no held-out prompts" in err
    assert command("ppo", "--recipe", "demo", *as_options([*sets, "ppo.eval_every=0"]))[0] == 0


def test_the_script_on_its_own(environment, tmp_path):
    """In a shell: a reward function of the current folder, an earlier run moved aside, and silence otherwise."""
    recipe = small_recipe(tmp_path)
    run = Run(tmp_path / "out")
    save_random_adapter(recipe, run, "reward")
    run.stage("ppo").mkdir()
    (run.stage("ppo") / "precious").touch()
    (tmp_path / "mine.py").write_text("def short(prompts, responses):\n    return [-len(r) / 10 for r in responses]\n")
    sets = [*small_sets(tmp_path / "data"), 'ppo.reward_functions=["mine:short"]', "ppo.iterations=1"]
    code, out, err = script(environment, tmp_path, "ppo", "--recipe", "demo", "--output-dir", "out", *as_options(sets))
    assert code == 0, err
    code_from, *rows, moved = err.splitlines()
    assert code_from == f"ppo.reward_functions: mine:short from {tmp_path / 'mine.py'}"
    assert moved == f"{Path('out/ppo')} held an earlier run; it is now {Path('out/ppo.1')}"
    assert [row.partition(": ")[2] for row in rows] == ["20 rows to train on", "8 rows to test on"]
    assert (tmp_path / "out" / "ppo.1" / "precious").exists()
    assert out.splitlines()[-1].startswith("ppo: adapter in out/ppo")


def test_a_fault_in_the_script(environment, tmp_path):
    code, out, err = script(environment, tmp_path, "ppo", "--recipe", "dmo")
    assert (code, out) == (2, "")
    assert err.startswith("Error: dmo: no recipe of that name")
    assert len(err.splitlines()) == 1

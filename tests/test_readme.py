"""Every command of the README, run in its order in one folder, with trainings cut to a step or two."""

import io
import re
import signal
import subprocess
import sys
from pathlib import Path

from demo_runs import DEMO
from labelling_page import label
from pages import commands, opens_the_labelling_page, own_commands, run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ["data.preferences_test=few_preferences_test.jsonl", "data.prompts_test=few_prompts_test.jsonl"]
SHORT = {
    "reward": ["reward.max_steps=2"],
    "run": ["reward.max_steps=2", "ppo.iterations=1", "ppo.batch_size=8", "stages=[reward,ppo,evaluate]"],
    "evaluate": ["ppo.response_length=8", *FEW],
    "ppo": ["ppo.iterations=1", "ppo.batch_size=8", "ppo.num_ppo_epochs=1", "ppo.eval_prompts=4"],
}


def test_every_command_works(monkeypatch, tmp_path, capsys, run_collect):
    my_rewards, scores = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(my_rewards)
    for name in ("preferences_test", "prompts_test"):
        (tmp_path / f"few_{name}.jsonl").write_text("\n".join((DEMO / f"{name}.jsonl").read_text().splitlines()[:24]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)  # another test has one of that name
    own = own_commands(README)
    wanted = {"--help", "recipes", "run", "reward", "sample", "collect", "ppo", "evaluate", "export", "chat"}
    assert {arguments[0] for arguments in own} >= wanted
    for arguments in own:
        if opens_the_labelling_page(arguments):
            running = run_collect(*arguments[1:])
            label(running.link, "ann", 100, noise=0.0, seed=0)
            running.stop(signal.SIGINT)
            continue
        settings = SHORT.get(arguments[0], [])
        if arguments[0] == "reward" and "--dataset" not in arguments:  # else the part held out is the dataset's own
            settings = [*settings, FEW[0]]
        shorter = [part for setting in settings for part in ("--set", setting)]
        if arguments[0] == "export":  # one iteration may have improved nothing
            shorter.append("--anyway")
        if arguments[0] == "chat":
            monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n/regen\n"))
        assert run(monkeypatch, [*arguments, *shorter]) == 0, (arguments, capsys.readouterr().err)
    namespace: dict = {}
    exec(scores, namespace)
    assert len(namespace["scores"]) == 1
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert (tmp_path / "my-reward-model" / "model.safetensors").is_file()


def test_the_other_commands_are_make_and_pip():
    others = [command for command in commands(README) if not command.startswith("lorarlhf ")]
    assert sorted(others) == ["make demo", "make test", "pip install ."]
    for target in ("demo", "test"):
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_the_wheel_holds_recipes_and_data(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(next(tmp_path.glob("*.whl")))],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for path in (
        "recipes/demo.yaml",
        "recipes/base/hh-rlhf.yaml",
        "constraints.txt",
        "data/demo/model/model.safetensors",
    ):
        assert f"lorarlhf/shipped/{path}" in names

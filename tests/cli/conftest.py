"""Commands as a person or a script types them."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorarlhf.cli.main import main

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
    monkeypatch.setenv("COLUMNS", "200")
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


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a person's own shell: Hugging Face online, telemetry not refused, and a network that tells on whoever asks."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    hidden = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "NETWORK_LOG": str(folder / "network.log"), "COLUMNS": "200"}


@pytest.fixture
def script(environment):
    """`script(folder, *args)`: exit code, stdout and stderr of the script, or of another `program`, in a folder."""

    def call(folder, *args, program=(str(SCRIPT),)):
        done = subprocess.run([*program, *map(str, args)], env=environment, cwd=folder, capture_output=True, text=True)
        network = Path(environment["NETWORK_LOG"])
        assert not network.exists(), network.read_text()
        return done.returncode, done.stdout, done.stderr

    return call

"""`lorarlhf doctor`: each check with its fault simulated, what is said of it, and what a bug report holds."""

import getpass
import importlib.metadata
import json
import math
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from lorarlhf.cli.main import main
from lorarlhf.recipe.load import load_recipe
from lorarlhf.recipe.sections import ModelConfig
from lorarlhf.recipe.shipped import Planned, find_recipe, list_recipes, pinned_versions, planned_for
from lorarlhf.stages import doctor, fitting
from lorarlhf.stages.doctor import Finding, anonymous, examine, for_bug_report

GIB = 2**30
CARD = "NVIDIA GeForce RTX 3060, 580.95.05\n"


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*arguments)`: exit code, stdout and stderr of `lorarlhf doctor`."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lorarlhf", "doctor", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def nvidia(monkeypatch):
    """`nvidia(text)`: the driver's tool is there and prints this; it fails on None."""

    def told(text):
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

        def smi(command, **options):
            if text is None:
                raise subprocess.CalledProcessError(9, command)
            return subprocess.CompletedProcess(command, 0, text, "")

        monkeypatch.setattr(subprocess, "run", smi)

    return told


def version(monkeypatch, cuda):
    monkeypatch.setattr(torch, "version", namedtuple("version", ["cuda", "hip"])(cuda, None))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


# The whole


def test_a_line_each_and_the_hub_is_not_asked(command, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    code, out, err = command()
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[1] for line in lines] == [
        *("torch", "accelerator", "memory", "bfloat16", "bitsandbytes", "python"),
        *("versions", "Hub", "disk", "cache", "recipes"),
    ]
    assert {line.split()[0] for line in lines} <= {"ok", "note", "problem"}
    assert "cannot be told" not in out
    assert "fits: demo; " in lines[-1], "by the planner"


def test_json_for_a_bug_report_and_exit_2_where_nothing_could_train(command, monkeypatch):
    def broken() -> Finding:
        return Finding("bitsandbytes", "problem", "4 bits do not work", "install it", stops=True)

    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, broken))
    code, out, err = command("--json")
    told = json.loads(out)
    assert code == 2
    assert err == "Error: nothing can be trained here; see to bitsandbytes\n"
    assert told["can_train"] is False
    assert [finding["status"] for finding in told["findings"]] == ["ok", "problem"]
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python,))
    assert command("--json")[0] == 0


def test_a_check_that_fails_is_a_problem_and_the_others_go_on():
    def check_the_moon() -> Finding:
        raise RuntimeError("no rocket\nat all")

    first, second = examine([check_the_moon, doctor.check_python])
    assert (first.name, first.status, first.what) == ("the moon", "problem", "cannot be told: RuntimeError: no rocket")
    assert second.status == "ok"


def test_a_report_names_nobody_and_holds_no_token(monkeypatch, tmp_path):
    token = "hf_" + "x" * 34
    home = tmp_path / "home" / "jane"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("lorarlhf.stages.doctor.four_bit_error", Path("/scratch/jane/lib.so").read_bytes)
    checks = (doctor.check_hub, doctor.check_caches, doctor.check_bitsandbytes)
    report = json.dumps(for_bug_report(examine(checks)))
    assert "a token is there" in report
    assert "~/hub" in report
    assert "/scratch/~/lib.so" in report
    for secret in ("jane", token, socket.gethostname()):
        assert secret not in report
    assert anonymous("janet in /data/janet/x") == "janet in /data/janet/x"


@pytest.mark.parametrize(
    ("home", "text", "told"),
    [
        ("/", "/usr/lib and / are read", "/usr/lib and / are read"),
        ("/root", "/rootfs, /root-fs and /data/root2", "/rootfs, /root-fs and /data/root2"),
        ("/root", "in '/root', /root: /root/x", "in '~', ~: ~/x"),
        ("/home/jane", "'/scratch/jane' /nfs/home/jane/x", "'/scratch/~' /nfs/home/~/x"),
    ],
)
def test_only_a_whole_home_is_written_short(monkeypatch, home, text, told):
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    assert anonymous(text) == told


def test_a_user_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    assert anonymous("/scratch/jane/x") == "/scratch/~/x"


# torch and the accelerator


def test_a_cpu_build_on_a_machine_with_a_gpu_is_said_first(command, monkeypatch, nvidia):
    nvidia(CARD)
    version(monkeypatch, None)
    monkeypatch.setattr(doctor, "CHECKS", doctor.CHECKS[:1])
    code, out, _ = command()
    assert code == 0, "a CPU trains too"
    assert out.startswith(
        f"problem  torch  torch {torch.__version__}, built without CUDA or ROCm, and this machine has "
    )
    assert "NVIDIA GeForce RTX 3060, driver 580.95.05: it is not used; install the build for your CUDA version" in out


@pytest.mark.parametrize(
    ("visible", "why"), [(None, "the driver may be too old for it"), ("", "CUDA_VISIBLE_DEVICES is ''; unset it")]
)
def test_a_gpu_that_a_cuda_build_does_not_see(monkeypatch, nvidia, visible, why):
    nvidia(CARD)
    version(monkeypatch, "12.8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = doctor.check_torch()
    assert found.status == "problem"
    assert why in f"{found.what}; {found.remedy}"


@pytest.fixture
def plugged_in(monkeypatch, tmp_path):
    """`plugged_in(vendor, class)`: this is all that is on the bus."""

    def plug(vendor: str, kind: str) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(doctor, "PCI", tmp_path)
        (tmp_path / "0000:01:00.0").mkdir()
        (tmp_path / "0000:01:00.0" / "vendor").write_text(f"{vendor}\n")
        (tmp_path / "0000:01:00.0" / "class").write_text(f"{kind}\n")

    return plug


def test_a_driver_that_does_not_answer(monkeypatch, nvidia, plugged_in):
    nvidia(None)
    plugged_in("0x10de", "0x030000")
    version(monkeypatch, "12.8")
    assert "does not see an NVIDIA GPU whose driver does not answer" in doctor.check_torch().what


@pytest.mark.parametrize("build", [None, "12.8"])
@pytest.mark.parametrize(
    ("told", "device"),
    [
        (None, ("0x8086", "0x030000")),
        (None, ("0x10de", "0x040300")),  # a sound card
        ("No devices were found\n", ("0x10de", "0x030000")),
        ("", ("0x8086", "0x030000")),
    ],
)
def test_the_drivers_tool_without_a_gpu_is_no_gpu(monkeypatch, nvidia, plugged_in, build, told, device):
    nvidia(told)
    plugged_in(*device)
    version(monkeypatch, build)
    assert doctor.check_torch().status == "ok"


def test_a_card_may_have_a_comma_in_its_name(nvidia):
    nvidia("A, B, 580.95.05\n")
    assert doctor.nvidia_gpus() == ["A, B, driver 580.95.05"]


def test_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.check_torch()
    assert found.stops
    assert found.what.startswith("cannot be imported: ")


def test_memory_that_others_have_taken(monkeypatch):
    monkeypatch.setattr("lorarlhf.memory.total_memory_bytes", lambda: 12 * GIB)
    for free, status in ((5, "note"), (11, "ok")):
        monkeypatch.setattr("lorarlhf.memory.available_memory_bytes", lambda free=free: free * GIB)
        found = doctor.check_memory()
        assert (found.status, found.what) == (status, f"{free}.0 of 12.0 GiB are free")


@pytest.mark.parametrize(("fast", "status"), [(True, "ok"), (False, "note")])
def test_bfloat16(monkeypatch, fast, status):
    monkeypatch.setattr("lorarlhf.backbone.load._bfloat16_is_fast", lambda: fast)
    assert doctor.check_bfloat16().status == status


# bitsandbytes


def test_four_bits_compute_here():
    assert 0.01 < doctor.four_bit_error() < 0.15, "NF4 rounds, and by about so much"
    assert doctor.check_bitsandbytes().status == "ok"


@pytest.mark.parametrize("error", [RuntimeError("no kernel image\nfor this device"), ImportError("no libcudart")])
def test_kernels_that_do_not_run(monkeypatch, error):
    def forward(*args):
        raise error

    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", forward)
    found = doctor.check_bitsandbytes()
    assert (found.status, found.stops) == ("problem", False)
    assert "model.quantization=none trains" in found.remedy
    assert found.what == f"4 bits do not work: {type(error).__name__}: {str(error).splitlines()[0]}"


def backward_off(factor: float):
    """Leaves an output as it is, and multiplies the gradient that comes back."""

    def hook(output):
        output.register_hook(lambda gradient: gradient * factor)
        return output

    return hook


@pytest.mark.parametrize(
    "wrong", [lambda output: output * 1.5, lambda output: output * math.nan, backward_off(2.0), backward_off(math.nan)]
)
def test_kernels_that_are_wrong(monkeypatch, wrong):
    import bitsandbytes

    real = bitsandbytes.nn.Linear4bit.forward
    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", lambda self, given: wrong(real(self, given)))
    found = doctor.check_bitsandbytes()
    assert (found.status, found.stops) == ("problem", False)
    assert "model.quantization=none trains" in found.remedy
    assert "are off by" in found.what


def test_without_bitsandbytes_nothing_is_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = doctor.check_bitsandbytes()
    assert (found.status, found.stops) == ("problem", True)
    assert found.what.startswith("cannot be imported: ")


# Versions, Hub, disk, cache


def test_the_versions_of_the_libraries(monkeypatch):
    installed = dict(pinned_versions())
    requires = ["torch>=2.8", "trl>=1.12", "huggingface-hub>=1.0", "mkdocs>=1.6; extra == 'docs'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)

    def found(name: str) -> str:
        if installed.get(name.replace("-", "_")) is None:
            raise importlib.metadata.PackageNotFoundError
        return installed[name.replace("-", "_")]

    monkeypatch.setattr(importlib.metadata, "version", found)
    installed["torch"] += "+cpu"
    assert doctor.check_versions().status == "ok"
    installed["trl"] = "9.9.0"
    note = doctor.check_versions()
    assert (note.status, note.stops) == ("note", False)
    assert note.what == f"not those that are tested: trl 9.9.0 ({pinned_versions()['trl']})"
    installed["trl"] = "1.11.0"
    del installed["huggingface_hub"]
    problem = doctor.check_versions()
    assert problem.stops
    assert problem.what == "trl 1.11.0 is not >=1.12; huggingface-hub is missing"


@pytest.mark.parametrize(("token", "status"), [(None, "note"), ("hf_secret", "ok")])
def test_the_login(monkeypatch, token, status):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    found = doctor.check_hub()
    assert found.status == status
    assert "secret" not in found.what


@pytest.mark.parametrize(("free", "status", "stops"), [(0.5, "problem", True), (5, "note", False), (500, "ok", False)])
def test_the_disk(monkeypatch, tmp_path, free, status, stops):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    asked = []
    usage = namedtuple("usage", ["total", "used", "free"])

    def disk_usage(path):
        asked.append(path)
        return usage(1000 * GIB, 0, int((free if path == tmp_path else 900) * GIB))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    found = doctor.check_disk()
    assert (found.status, found.stops) == (status, stops)
    assert asked == [Path.cwd(), tmp_path]


def test_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert doctor.check_caches().what == f"{tmp_path}: empty as yet"
    (tmp_path / "models--a--b").mkdir()
    assert doctor.check_caches().what == f"{tmp_path}: 1 models, 0 data sets"
    monkeypatch.setattr("os.access", lambda *args: False)
    assert doctor.check_caches().status == "problem"


# What fits


def info(name: str):
    return next(info for info in list_recipes() if info.name == name)


@pytest.mark.parametrize(("gib", "verdict"), [(3.2, "fits"), (3.0, "does not fit")])
def test_a_recipe_whose_model_is_not_here_goes_by_its_header(gib, verdict):
    assert planned_for(find_recipe("qwen2.5-0.5b-4gb")).peaks["ppo"] == 3.1
    assert fitting.verdict(info("qwen2.5-0.5b-4gb"), "cuda", int(gib * GIB)) == verdict


def test_a_recipe_for_a_card_is_for_no_cpu_and_one_for_the_cpu_wants_its_model():
    assert fitting.verdict(info("qwen2.5-0.5b-4gb"), "cpu", 64 * GIB) == "for a GPU"
    assert fitting.verdict(info("smollm2-135m-cpu"), "cpu", 64 * GIB) == "not known"


def test_a_recipe_whose_model_is_here_goes_by_the_planner():
    assert fitting.verdict(info("demo"), "cpu", GIB // 2) == "does not fit"


@pytest.mark.parametrize(("stages", "verdict"), [("reward", "fits"), ("sft, reward", "does not fit")])
def test_only_stages_that_the_recipe_has_are_judged(monkeypatch, stages, verdict):
    """By planner and by header; and no remedy is planned."""
    planned = {"sft": 9 * GIB, "reward": GIB, "ppo": 9 * GIB}

    def plan(planner, stage, capacity):
        peak = namedtuple("peak", ["total"])(planned[stage])
        return namedtuple("plan", ["peak"])(peak)

    monkeypatch.setattr("lorarlhf.planner.fit._plan", plan)
    monkeypatch.setattr("lorarlhf.planner.fit._candidates", lambda *args: pytest.fail("remedies are planned"))
    monkeypatch.setattr(fitting, "load_recipe", lambda name: load_recipe(name, sets=[f"stages=[{stages}]"]))
    assert fitting.verdict(info("demo"), "cpu", 2 * GIB) == verdict
    said = Planned(12, {stage: peak / GIB for stage, peak in planned.items()}, 4096)
    monkeypatch.setattr(fitting, "planned_for", lambda path: said)
    monkeypatch.setattr(fitting, "model_folder", lambda config: None)
    assert fitting.verdict(info("demo"), "cuda", 2 * GIB) == verdict


def test_a_config_in_the_cache_is_found_without_the_hub(monkeypatch, tmp_path):
    config = tmp_path / "snapshot" / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **options: str(config))
    assert fitting.model_folder(load_recipe("qwen2.5-0.5b-4gb").model) == config.parent
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **options: None)
    assert fitting.model_folder(ModelConfig(name="a/b")) is None


def test_where_no_recipe_fits_nothing_could_train(monkeypatch):
    monkeypatch.setattr(fitting, "shipped_verdicts", lambda: {"a": "does not fit", "b": "for a GPU", "c": "not known"})
    found = doctor.check_recipes()
    assert found.stops
    assert found.what == "does not fit: a; not known: c; 1 are for a GPU"
    monkeypatch.setattr(fitting, "shipped_verdicts", lambda: {"a": "fits"})
    assert doctor.check_recipes() == Finding("recipes", "ok", "fits: a")

"""What of this machine helps or hinders training. Asks nobody but the machine itself; no network.

torch and what needs it are imported inside the checks: that they cannot be is one of the things to be said.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lorarlhf.errors import first_line
from lorarlhf.files import free_bytes
from lorarlhf.recipe.shipped import pinned_versions
from lorarlhf.version import __version__

GIB = 2**30
TOO_LITTLE_DISK, LITTLE_DISK = 1 * GIB, 20 * GIB  # a small model's adapters and checkpoints; a 7B model in 16 bits
REACH = 0.3  # of NF4's rounding, as a share of what is rounded: it is about a tenth
PART_ENDS = r"(?![\w-])"  # of a path: a quote or a colon may follow, `/rootfs` is not in `/root`
PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"  # vendor, and how the class of a graphics card begins
TORCH_BUILDS = "https://pytorch.org/get-started/locally"

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        remedy: what to do; None where there is nothing.
        stops: nothing can be trained before it is mended.
    """

    name: str
    status: Status
    what: str
    remedy: str | None = None
    stops: bool = False


def examine(checks: Sequence[Callable[[], Finding]] | None = None) -> list[Finding]:
    """Every check's finding, in order; one that fails itself is a problem."""
    findings = []
    for check in CHECKS if checks is None else checks:
        try:
            findings.append(check())
        except Exception as error:  # what a broken installation raises has no class of its own
            name = check.__name__.removeprefix("check_").replace("_", " ")
            findings.append(Finding(name, "problem", f"cannot be told: {type(error).__name__}: {first_line(error)}"))
    return findings


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether nothing that was found stops training."""
    return not any(finding.stops for finding in findings)


def for_bug_report(findings: Sequence[Finding]) -> dict[str, Any]:
    """All of it as JSON, without the name of the user or the machine."""
    return {
        "lorarlhf": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "can_train": can_train(findings),
        "findings": [
            {key: anonymous(value) if isinstance(value, str) else value for key, value in asdict(finding).items()}
            for finding in findings
        ],
    }


def anonymous(text: str) -> str:
    """With `~` for the home folder, and for the user's name wherever it is part of a path."""
    with contextlib.suppress(RuntimeError):  # a container may have no home
        home = Path.home()
        if len(home.parts) > 1:  # `/` is nobody's
            text = re.sub(rf"(?<![\w.-]){re.escape(str(home))}{PART_ENDS}", "~", text)
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):  # nor a user
        return text
    return re.sub(rf"(?<=[/\\]){re.escape(user)}{PART_ENDS}", "~", text)


# The checks, in the order in which they are said.


def check_torch() -> Finding:
    """Whether torch's build is one for what is in the machine."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its own libraries is missing
        return Finding("torch", "problem", f"cannot be imported: {first_line(error)}", "install it again", stops=True)
    build = torch.version.cuda or torch.version.hip or getattr(torch.version, "xpu", None)
    built_for = f"torch {torch.__version__}, " + (f"built for {build}" if build else "built without CUDA or ROCm")
    gpus = nvidia_gpus()
    if gpus and not build:
        what = f"{built_for}, and this machine has {gpus[0]}: it is not used"
        return Finding("torch", "problem", what, f"install the build for your CUDA version: {TORCH_BUILDS}")
    if gpus and not torch.accelerator.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else "the driver may be too old for it"
        remedy = "unset it" if hidden is not None else f"update the driver, or install an older build: {TORCH_BUILDS}"
        return Finding("torch", "problem", f"{built_for}, does not see {gpus[0]}; {why}", remedy)
    return Finding("torch", "ok", built_for)


def nvidia_gpus() -> list[str]:
    """Name and driver of each NVIDIA GPU, as the driver's own tool tells; none where there is no such tool."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # so it does, too, where it is installed without a GPU
        return ["an NVIDIA GPU whose driver does not answer"] if _nvidia_is_plugged_in() else []
    rows = [line.rpartition(", ") for line in told.splitlines()]
    return [f"{name}, driver {driver}" for name, comma, driver in rows if comma]  # else "No devices were found"


def _nvidia_is_plugged_in() -> bool:
    """Whether Linux names a graphics card of NVIDIA's; elsewhere, where nothing else tells, its driver's tool does."""
    if sys.platform != "linux":
        return True
    return any(
        (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith(DISPLAY)
        for device in PCI.glob("*")
    )


def check_accelerator() -> Finding:
    """What is computed on."""
    from lorarlhf.memory import accelerator

    device = accelerator()
    if device is None:
        return Finding("accelerator", "note", "none: the CPU computes", "small models alone; `lorarlhf demo` runs")
    import torch

    module = torch.get_device_module(device)
    names = [module.get_device_name(i) for i in range(module.device_count())] if device.type != "mps" else ["Apple GPU"]
    driver = f"; {nvidia_gpus()[0]}" if device.type == "cuda" and nvidia_gpus() else ""
    return Finding("accelerator", "ok", f"{device.type}: {', '.join(names)}{driver}")


def check_memory() -> Finding:
    """Of the GPU, or of the machine where none has its own."""
    from lorarlhf.memory import available_memory_bytes, total_memory_bytes

    free, total = available_memory_bytes(), total_memory_bytes()
    what = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if free < total / 2:
        return Finding("memory", "note", what, "close what else uses it; what is planned counts on what is free")
    return Finding("memory", "ok", what)


def check_bfloat16() -> Finding:
    """Whether this device computes in bfloat16 without loss of speed."""
    from lorarlhf.backbone.load import compute_dtype
    from lorarlhf.recipe.sections import ModelConfig

    if str(compute_dtype(ModelConfig(name="any"))) == "torch.bfloat16":
        return Finding("bfloat16", "ok", "fast here, and used")
    what = "not faster than float32 here: that is used, which takes more memory"
    return Finding("bfloat16", "note", what)


def check_bitsandbytes() -> Finding:
    """Whether a 4-bit layer really computes here, forward and backward, and what its weights say it should.

    Where it does not, models that are not quantised still train.
    """
    try:
        import bitsandbytes
    except Exception as error:  # what a broken installation raises has no class of its own
        what = f"cannot be imported: {type(error).__name__}: {first_line(error)}"
        return Finding("bitsandbytes", "problem", what, "pip install --upgrade bitsandbytes", stops=True)
    version = bitsandbytes.__version__
    otherwise = "until then only --set model.quantization=none trains"
    try:
        off_by = four_bit_error()
    except Exception as error:  # a missing library, a kernel for another card, ...: all mean the same here
        what = f"4 bits do not work: {type(error).__name__}: {first_line(error)}"
        return Finding("bitsandbytes", "problem", what, f"pip install --upgrade bitsandbytes; {otherwise}")
    if not off_by < REACH:  # NaN, too
        what = f"bitsandbytes {version}: 4-bit layers or their gradients are off by {off_by:.0%}"
        return Finding("bitsandbytes", "problem", what, f"install another version of it or of torch; {otherwise}")
    return Finding("bitsandbytes", "ok", f"bitsandbytes {version}: 4 bits compute forward and backward")


def four_bit_error() -> float:
    """How far output and gradient of an NF4 layer are from those of the weights it was made of, as a share of them."""
    import torch
    from bitsandbytes.nn import Linear4bit

    from lorarlhf.memory import accelerator

    device = accelerator() or torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator)
    layer = Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict({"weight": weight})
    layer = layer.to(device)  # quantises
    layer.support_avx512bf16_for_cpu = False  # as for training, see `backbone.load`
    given = torch.randn(8, 64, generator=generator).to(device).requires_grad_()
    output = layer(given)
    output.square().sum().backward()
    assert given.grad is not None
    exact = given.detach().cpu() @ weight.T
    pairs = ((output.detach().cpu(), exact), (given.grad.cpu(), 2 * exact @ weight))
    errors = torch.stack([(found - wanted).norm() / wanted.norm() for found, wanted in pairs])
    return float(errors.max())  # NaN if one of them is


def check_versions() -> Finding:
    """Of the libraries it stands on: as this package asks for, and as it was tested."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = [Requirement(line) for line in importlib.metadata.requires("lorarlhf") or []]
    tested = {canonicalize_name(name): version for name, version in pinned_versions().items()}
    unfit, other = [], []
    for requirement in (r for r in wanted if r.marker is None):  # what belongs to an extra has a marker
        name = canonicalize_name(requirement.name)
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            unfit.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            unfit.append(f"{requirement.name} {found} is not {requirement.specifier}")
        elif name in tested and found.partition("+")[0] != tested[name]:
            other.append(f"{requirement.name} {found} ({tested[name]})")
    if unfit:
        return Finding("versions", "problem", "; ".join(unfit), "pip install --upgrade lorarlhf", stops=True)
    if other:
        remedy = "should it go wrong, install the version in brackets"
        return Finding("versions", "note", f"not those that are tested: {', '.join(other)}", remedy)
    return Finding("versions", "ok", "those that are tested")


def check_hub() -> Finding:
    """Whether there is a token, of which nothing more is said; the Hub itself is not asked."""
    from huggingface_hub import constants, get_token

    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    if get_token() is None:
        return Finding("Hub", "note", f"no login{offline}", "gated models and pushing want one: hf auth login")
    return Finding("Hub", "ok", f"a token is there{offline}; `hf auth whoami` asks the Hub whose")


def check_disk() -> Finding:
    """Of the current folder, which runs go to, and of the models' cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    free = {place: free_bytes(path) for place, path in (("runs", Path.cwd()), ("models", Path(HF_HUB_CACHE)))}
    what = ", ".join(f"{size / GIB:.1f} GiB free for {place}" for place, size in free.items())
    least = min(free.values())
    if least < TOO_LITTLE_DISK:
        return Finding("disk", "problem", what, "make room, or set HF_HOME and --output-dir elsewhere", stops=True)
    if least < LITTLE_DISK:
        return Finding("disk", "note", what, "a 7B model takes 15 GiB, each of its checkpoints up to one")
    return Finding("disk", "ok", what)


def check_caches() -> Finding:
    """Where models and data lie, and how many there are."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder, shown = Path(HF_HUB_CACHE), anonymous(HF_HUB_CACHE)
    kinds = {kind: len(list(folder.glob(f"{kind}s--*"))) for kind in ("model", "dataset")}
    if not any(kinds.values()):
        return Finding("cache", "ok", f"{shown}: empty as yet")
    if not os.access(folder, os.W_OK):
        return Finding("cache", "problem", f"{shown}: cannot be written", "give it to you, or set HF_HOME elsewhere")
    return Finding("cache", "ok", f"{shown}: {kinds['model']} models, {kinds['dataset']} data sets")


def check_recipes() -> Finding:
    """Which shipped recipes fit into what is free, by the planner."""
    from lorarlhf.stages.fitting import shipped_verdicts

    by_verdict: dict[str, list[str]] = {}
    for name, verdict in shipped_verdicts().items():
        by_verdict.setdefault(verdict, []).append(name)
    others = len(by_verdict.pop("for a GPU", []))  # there are many
    what = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items())
    what += f"; {others} are for a GPU" if others else ""
    remedy = "`lorarlhf plan --recipe NAME` says what to change; it asks the Hub for the model's config"
    if "fits" not in by_verdict:
        return Finding("recipes", "problem", what, remedy, stops=True)
    return Finding("recipes", "ok", what, None if set(by_verdict) == {"fits"} else remedy)


def check_python() -> Finding:
    """Which Python and which lorarlhf these are."""
    return Finding("python", "ok", f"{platform.python_version()} on {sys.platform}, lorarlhf {__version__}")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_torch,  # first: a GPU that lies idle matters more than all that follows
    check_accelerator,
    check_memory,
    check_bfloat16,
    check_bitsandbytes,
    check_python,
    check_versions,
    check_hub,
    check_disk,
    check_caches,
    check_recipes,
)

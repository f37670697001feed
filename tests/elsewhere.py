"""Adapters, templates and runs as somebody might make them who means harm, and what a call does that it must not."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# Adapters

CONFIGS: tuple[tuple[str, Any], ...] = (
    ("r", 10**9),
    ("r", 0),
    ("r", True),
    ("r", "4"),
    ("lora_alpha", -1),
    ("lora_alpha", 10**400),
    ("peft_type", "IA3"),
    ("task_type", "FEATURE_EXTRACTION"),
    ("target_modules", "(a+)+$"),
    ("target_modules", "all-linear"),
    ("target_modules", []),
    ("target_modules", ["q_proj", "(.*)*x"]),
    ("target_modules", ["q_proj\n"]),
    ("exclude_modules", "(a+)+$"),
    ("exclude_modules", "(?!(a+)+$).*"),
    ("layers_pattern", ["(a+)+"]),
    ("layers_to_transform", [-1]),
    ("rank_pattern", {"(a+)+$": 1}),
    ("rank_pattern", {".*": 1}),
    ("rank_pattern", {"q_proj": 0}),
    ("alpha_pattern", {"q_proj|k_proj": 64}),
    ("target_parameters", ["(a+)+$"]),
    ("modules_to_save", ["model"]),
    ("trainable_token_indices", [1]),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "olora"),
    ("use_dora", True),
    ("lora_bias", True),
    ("bias", "all"),
    ("layer_replication", [[0, 1000000]]),
    ("loftq_config", {"loftq_bits": 4}),
    ("something_new", True),
)
DAMAGED_CONFIGS = {
    "empty": b"",
    "cut": b"{",
    "list": b"[]",
    "null": b"null",
    "no utf-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "digits": b'{"r": ' + b"9" * 5000 + b"}",
    "long": b" " * (2**20 + 1),
}


class Payload:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


_HEADER = b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}'
DAMAGED_WEIGHTS = {
    "empty": b"",
    "header without end": b"\xff" * 8 + b"{}",
    "pickle": pickle.dumps(Payload()),
    "sizes that are not there": struct.pack("<Q", len(_HEADER)) + _HEADER + b"\0" * 4,
    "no header": struct.pack("<Q", 2) + b"[]",
}
SPOILT = (
    (torch.float32, float("nan"), "NaN or infinity in "),
    (torch.bfloat16, float("-inf"), "NaN or infinity in "),
    (torch.float8_e4m3fn, 0.0, " is float8_e4m3fn, and no float of 16 bits"),
    (torch.bool, 0.0, " is bool, and no float of 16 bits"),
)


def rewrite_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def spoil_weights(adapter: Path, part: str, kind: torch.dtype, value: float) -> str:
    """Give one number of the first tensor of that name another value and kind; returns the tensor's whole name."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(name for name in tensors if part in name)
    spoiled = tensors[key].clone()
    spoiled[-1, -1] = value
    save_file({**tensors, key: spoiled.to(kind)}, file)
    return key


# Templates, by what is said of them

TEMPLATES = {
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "fails with RecursionError",
    "{{ 'a' * 10**11 }}": "takes more than 0 GiB",
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}": "more than",
    "{{ 'a'.center(10**11) }}": "takes more than 0 GiB",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "takes more than 1 seconds",
    "{% for i in range(10**9) %}{% endfor %}": "fails with OverflowError",
    "{% for i in range(9000) %}{{ 'a' * 9000 }}{% endfor %}": "writes more than 16,777,216 characters",
    "": "writes nothing",
    "{# nothing #}\n": "writes nothing",
    "{{ messages[7].content }}": "refuses a conversation of user",
    "{{ raise_exception('one\ntwo') }}": "refuses a conversation of user (one)",
    "{{ 1 / 0 }}": "fails with ZeroDivisionError",
    "{% if %}": "refuses a conversation",
    "{{ ''.__class__.__mro__ }}": "refuses a conversation",
    "{{ lipsum.__globals__ }}": "writes nothing",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}": "refuses a conversation",
}

# Recipes and runs that name code; MODULE leaves a trace where it is imported.

FUNCTION = "ppo: {reward_functions: ['mine:score'], reward_model_weight: 0.0}\n"
REMOTE = "model: {name: some/model, trust_remote_code: true}\n"
MODULE = "open(__file__ + '.ran', 'w').close()\ndef score(prompts, responses):\n    return [0.0] * len(responses)\n"
COMMANDS = (
    "plan --recipe {recipe}",
    "run --recipe {recipe} --dry-run",
    "ppo --recipe {recipe} --dry-run",
    "ppo --recipe {recipe}",
    "evaluate --run unpacked",
    "evaluate --run unpacked --frontier",
)
WITHOUT_FUNCTIONS = (  # the model's code they would run, but no function
    "sample --run unpacked --prompts shipped:demo/prompts.jsonl --out pairs.jsonl",
    "chat --run unpacked",
    "score shipped:demo/preferences.jsonl --run unpacked --out scored.jsonl",
    "export --run unpacked --to out",
)

# What must not happen

RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pickle.find_class")
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


class OutsideChanges:
    """Programs that were run and files that were changed outside a folder.

    Attributes:
        folder: where files may be changed.
        seen: what was done that may not be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.seen: list[str] = []

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in RUNS:
            self.seen.append(f"{event} {str(args)[:200]}")
            return
        opened = event == "open" and (set(args[1] or "") & set("wax+") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        changed = args[1] if event in ("os.rename", "os.link", "os.symlink") else args[0]
        if not (opened or event in WRITES) or not isinstance(changed, (str, os.PathLike)):
            return
        path = Path(os.path.abspath(changed))
        new = event == "open" and ("x" in (args[1] or "") or (args[2] or 0) & os.O_EXCL)  # follows no link
        real = path.resolve() if event == "open" and not new else path.parent.resolve() / path.name
        if not real.is_relative_to(self.folder) and str(real) != os.devnull:
            self.seen.append(f"{event} {real}")


_followed: list[OutsideChanges] = []
sys.addaudithook(lambda event, args: [changes.hear(event, args) for changes in _followed] if _followed else None)


@contextlib.contextmanager
def changes_outside(folder: Path) -> Iterator[OutsideChanges]:
    changes = OutsideChanges(folder)
    _followed.append(changes)
    try:
        yield changes
    finally:
        _followed.remove(changes)

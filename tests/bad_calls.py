"""Calls that nobody means, drawn at random: recipes, files of rows, options. For the property test and for
`benchmarks/faults.py`, which draws a thousand."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from typer.core import TyperOption

from lorarlhf.cli.main import app, main
from lorarlhf.recipe.keys import all_keys

SECONDS = 120  # that a call may take, however busy the machine is: most end in less than one
MOST_FAULTS = 4  # of a recipe here, a line each
DEMO = Path(__file__).parents[1] / "data" / "demo"
TEXTS = (
    *("", " ", "\x00", "\ud800", "\u2028", "\u202e", "\x1b[31m", "[red]x[/]", "a\nb", "'", '"', "\\", "%s", "{}"),
    *("x" * 300, "~nobody-of-that-name/x", "../" * 40, "/", ".", "/dev/zero", "/dev/full", "none.jsonl", "dir.jsonl"),
    *("pipe.jsonl", "shipped:", "shipped:../../x", "a/b", "a/b/c", "http://127.0.0.1:9/x", "{source: x", "{a: 1}"),
    *("{source: rows.jsonl, split: x, name: y, weight: -1}", "None", "null", "true", "a=b=c", "=", "a,b", "${HOME}"),
)
NUMBERS = (
    *("nan", "inf", "-inf", "-1", "0", "1", "2", "-0.0", "1e999", "1e-999", "9" * 400, "0x" + "f" * 400, "4294967296"),
    *("9" * 20, "1_000", "\u0663", "\u00bd", "1,5", "1e-5", "1e9", "0.5"),
)
VALUES = (  # as YAML has them
    *NUMBERS,
    *(json.dumps(text) for text in TEXTS if text.isprintable()),
    *("~", "[]", "{}", "[[]]", "[1, a]", "{a: {b: c}}", "2020-01-01", "!!python/object:os.system x", "!!binary aGk="),
    *("&a [*a]", "*nobody", "[" * 50 + "]" * 50, "|\n   text", '"\\0"', '"\\ud800"', "@x", "`x`", "%x", "- a", "? a"),
)
ROW_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", " ", "\x00", "\ud800", "\u2028", [], {}, [[]]),
    *(["a"], [{}], [{"role": "user"}], [{"role": "nobody", "content": "x"}], [{"role": "user", "content": None}]),
    *([{"role": 3, "content": []}], {"content": "x"}, "<|im_end|>" * 20, "a" * 5000),
)
CHAT = [{"role": "user", "content": "Q?"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "Q?", "chosen": "a", "rejected": "b"},
    {
        "prompt": CHAT,
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    },
    {"chosen": "\n\nHuman: Q?\n\nAssistant: a", "rejected": "\n\nHuman: Q?\n\nAssistant: b"},
    {"prompt": "Q?", "completion": "a"},
    {"messages": [*CHAT, {"role": "assistant", "content": "a"}]},
    {"prompt": "Q?", "completion": "a", "label": True},
    {"prompt": "Q?", "response_a": "a", "response_b": "b", "winner": "model_a"},
)
BASE = {  # a call of each command that loads no model, to which one more word is added, or from which one is taken
    "plan": ["--recipe", "demo"],
    "sft": ["--recipe", "demo", "--dry-run"],
    "reward": ["--recipe", "demo", "--dry-run"],
    "ppo": ["--recipe", "demo", "--dry-run"],
    "run": ["--recipe", "demo", "--dry-run"],
    "evaluate": ["--run", "none"],
    "export": ["--run", "none", "--to", "out"],
    "sample": ["--run", "none", "--prompts", "rows.jsonl", "--out", "pairs.jsonl"],
    "score": ["rows.jsonl", "--run", "none", "--out", "scored.jsonl"],
    "chat": ["--run", "none"],
    "report": ["--run", "none"],
    "recipes explain": ["ppo.kl_coef"],
    "recipes copy": ["demo", "new.yaml"],
    "data inspect": ["rows.jsonl"],
    "data convert": ["rows.jsonl", "new.jsonl"],
    "data split": ["rows.jsonl", "train.jsonl", "test.jsonl"],
    "data mix": ["rows.jsonl", "rows.jsonl", "--out", "new.jsonl"],
    "collect export": ["rows.jsonl", "--pairs", "rows.jsonl", "--out", "new.jsonl"],
}


@dataclass
class Call:
    """A command, and the file that it is to read, if that is the hostile one."""

    arguments: list[str]
    file: str = ""
    content: bytes = b""


class Reached(BaseException):
    """All inputs were found good, and what comes next changes the disk."""


def draw_call(draw: Random, kind: str) -> Call:
    """One that is at fault, or nearly.

    Args:
        kind: of what is drawn, one of `KINDS`.
    """
    return KINDS[kind](draw)


def draw_recipe(draw: Random) -> Call:
    key, value = draw.choice(LEAVES), draw.choice(VALUES)
    form = draw.randrange(8)
    if form == 0:  # a name that there is not
        text = f"extends: demo\n{_nested(_misspelt(draw, key), value)}"
    elif form == 1:
        text = f"extends: demo\n{_nested(key, value)}{_nested(key, draw.choice(VALUES))}"
    elif form == 2:
        text = f"extends: {value}\n"
    elif form == 3:
        path = draw.choice(sorted((DEMO.parents[1] / "recipes").glob("*.yaml")))
        return Call(["recipes", "validate", "mine.yaml"], "mine.yaml", _torn(draw, path.read_bytes()))
    else:
        text = f"extends: demo\n{_nested(key, value)}"
    command = draw.choice(["plan --recipe mine.yaml", "recipes validate mine.yaml", "run --dry-run --recipe mine.yaml"])
    return Call(command.split(), "mine.yaml", text.encode(errors="surrogatepass"))


def draw_rows(draw: Random) -> Call:
    kind = json.dumps(draw.choice(ROWS))
    rows = [json.loads(kind.replace("Q?", f"Q{n}?")) for n in range(draw.choice([1, 2, 30]))]
    if draw.random() < 0.7:
        bad = rows[draw.randrange(len(rows))] = dict(rows[0])
        name = draw.choice(list(bad))
        if draw.random() < 0.25:
            del bad[name]
        else:
            bad[name] = draw.choice(ROW_VALUES)
    name, content = _file(draw, rows)
    if draw.random() < 0.4:
        content = _torn(draw, content)
    commands = ["data inspect {}", "data convert {} new.jsonl", "reward --recipe demo --output-dir out --dataset {}"]
    commands += ["sft --recipe demo --output-dir out --dataset {}", "data split {} train.jsonl test.jsonl"]
    return Call(draw.choice(commands).format(name).split(), name, content)


def draw_options(draw: Random) -> Call:
    command = draw.choice(list(BASE))
    arguments = list(BASE[command])
    options = [param for param in _params(command) if isinstance(param, TyperOption)]
    option = draw.choice(options)
    name = draw.choice(option.opts)
    value = draw.choice((*TEXTS, *NUMBERS))
    form = draw.randrange(6)
    if form == 0:
        arguments.pop(draw.randrange(len(arguments)))
    elif form == 1:
        arguments.append(
            draw.choice([f"{name}x", f"--{value}", "-", "--", value, f"{name}=" if option.is_flag else name])
        )
    elif form == 2:
        arguments[draw.randrange(len(arguments))] = value
    elif name == "--set" or (form == 3 and "--set" in str(options)):
        arguments += ["--set", f"{'.'.join(draw.choice(LEAVES))}={draw.choice((*VALUES, *TEXTS))}"]
    else:
        arguments += [f"{name}={value}"] if option.is_flag else [name, value]
    # The operating system hands no NUL on, and of other bytes Python makes halves of surrogate pairs.
    return Call([*command.split(), *(argument.replace("\x00", "\udc80") for argument in arguments)])


KINDS = {"recipes": draw_recipe, "rows": draw_rows, "options": draw_options}
LEAVES = [key.path for key in all_keys() if key.section is None and key.path not in (("extends",),)]


def wrong_with(call: Call, folder: Path) -> tuple[int | None, str]:
    """Exit code of a call from within a folder, and what is wrong with how it ended.

    Nothing is wrong with 0, with 2 and a line where nothing was changed, and with None: all was good, and what comes
    next would change the disk.
    """
    before = _state(folder)
    try:
        code, said = in_process(call.arguments)
    except Reached:
        code, said = None, ""
    except TimeoutError:
        return 1, f"takes more than {SECONDS} seconds"
    changed = (
        {}
        if code == 0
        else {path for path in {**before, **_state(folder)} if before.get(path) != _state(folder).get(path)}
    )
    if changed:
        return code, f"exit {code}, and has changed {', '.join(sorted(map(str, changed)))}"
    if code == 2:
        return code, _no_line(said)
    return code, "" if code in (0, None) else f"exit {code}: {said[-300:]}"


def _no_line(said: str) -> str:
    """Why what was said is no line for people, or one a fault; Typer says its own in a box."""
    if said.startswith(("Usage: ", "╭─ Error")):
        return ""
    lines = said.removesuffix("\n").split("\n")
    if (
        not lines[0].startswith("Error: ")
        or len(lines) > MOST_FAULTS
        or any(not 0 < len(line) < 2000 for line in lines)
    ):
        return f"{len(lines)} lines: {said[:300]!r}"
    return ""


def in_process(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code of `lorarlhf ARGUMENTS`, and what it says on stderr. Raises TimeoutError after `SECONDS`."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
        mock.patch.object(sys, "argv", ["lorarlhf", *arguments]),
        _at_most(SECONDS),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, said.getvalue()


@contextlib.contextmanager
def nothing_trained() -> Iterator[None]:
    """A stage that has read and loaded all it needs raises `Reached`; what fits in memory is not worked out."""

    def reach(*args: object, **options: object) -> None:
        raise Reached

    with contextlib.ExitStack() as stack:
        for stage in ("sft", "reward", "ppo"):
            stack.enter_context(mock.patch(f"lorarlhf.stages.{stage}.check_room", reach))
        for module in ("loading", "pipeline"):
            stack.enter_context(mock.patch(f"lorarlhf.stages.{module}.check_memory"))
        stack.enter_context(mock.patch("lorarlhf.stages.pipeline.plan_here", return_value=None))
        stack.enter_context(mock.patch("lorarlhf.cli.plan.show_fit"))
        stack.enter_context(mock.patch("lorarlhf.stages.demo.run_recipe", reach))
        stack.enter_context(mock.patch("lorarlhf.stages.pipeline.load_backbone", reach))
        yield


def prepare(folder: Path) -> None:
    """What the calls find in the folder they are made from."""
    (folder / "dir.jsonl").mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(ROWS[0]) + "\n" for _ in range(3)), encoding="utf-8")
    (folder / "mine.yaml").write_text("extends: demo\n", encoding="utf-8")


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _state(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def _params(command: str) -> list[Any]:
    found: Any = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    return list(found.params)


def _nested(path: Sequence[Any], value: str) -> str:
    """A key with all the sections it is in, one a line."""
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path)]
    return "\n".join(lines) + f" {value}\n"


def _misspelt(draw: Random, path: Sequence[Any]) -> list[str]:
    names = list(map(str, path))
    at = draw.randrange(len(names))
    names[at] = draw.choice([names[at] + "s", names[at][1:] or "x", names[at].upper(), "<<", '"a b"', "1", "~", "[a]"])
    return names


def _torn(draw: Random, content: bytes) -> bytes:
    """Some bytes of it changed, cut off, put in or repeated."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(changed) + 1)
        form = draw.randrange(4)
        if form == 0:
            del changed[at:]
        elif form == 1:
            changed[at:at] = draw.choice(
                [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\t", b'"', b"{", b"]", b": ", b"\x85"]
            )
        elif form == 2 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        else:
            changed += changed[:at]
    return bytes(changed)


def _file(draw: Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    """Name and content of a file of such rows."""
    kind = draw.choice(["jsonl", "jsonl", "jsonl", "json", "csv", "parquet", "jsonl.gz"])
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "json":
        lines = json.dumps(rows).encode()
    elif kind == "csv":
        names = list(rows[0])
        lines = "\n".join(
            [",".join(names), *(",".join(json.dumps(row.get(name)) for name in names) for row in rows)]
        ).encode()
    elif kind == "jsonl.gz":
        lines = gzip.compress(lines, mtime=0)
    elif kind == "parquet":
        return f"hostile.{kind}", _parquet(rows)
    return f"hostile.{kind}", lines


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    """Of values that no column can hold side by side, their text."""
    try:
        return _in_parquet(rows)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return _in_parquet([{name: json.dumps(value) for name, value in row.items()} for row in rows])


def _in_parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()

"""`lorarlhf` in processes of their own, forked from one that has imported everything.

Imports take six seconds of computing a process, more than what most such tests are about.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from lorarlhf.cli.main import main


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lorarlhf.stages.sft", "lorarlhf.stages.reward", "lorarlhf.stages.ppo"])
    return context


class Forked:
    """A command on so many processes, with the variables that torchrun would set for them.

    Unlike under torchrun, one that ends ends none of the others.

    Args:
        arguments: of `lorarlhf`.
        output: a folder for what each process prints: `0.out`, `0.err`, `1.out`, ...
        variables: of the environment, beside this process's own.
    """

    def __init__(self, arguments: Sequence[str], output: Path, count: int = 1, **variables: str) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.processes = []
        together = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), **_meeting_place()} if count > 1 else {}
        for rank in map(str, range(count)):
            own = {"RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
            environment = {**os.environ, **together, **own, **variables}
            self.processes.append(_context().Process(target=_run, args=(list(arguments), output / rank, environment)))
            self.processes[-1].start()

    def wait_for(self, is_there: Callable[[], bool], seconds: float = 300) -> None:
        """Until something is there; raises AssertionError if a process has ended, or time has run out, before."""
        deadline = time.monotonic() + seconds
        while not is_there():
            assert time.monotonic() < deadline
            assert all(process.is_alive() for process in self.processes), self.said("err")
            time.sleep(0.02)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def finish(self, seconds: float = 300) -> list[int | None]:
        """Exit code of each process; one that has not ended by then is killed, and its code is not 0."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()
        return [process.exitcode for process in self.processes]

    def said(self, stream: str, rank: int = 0) -> str:
        """What a process has printed to its "out" or "err"."""
        return self.output.joinpath(f"{rank}.{stream}").read_text(encoding="utf-8")


def _meeting_place() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def _run(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    for descriptor, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["lorarlhf", *arguments]
    main()

"""Training that is asked to stop ends its step first. The second signal is not waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class StopRequest:
    """The signal that has asked, once there was one."""

    signal: signal.Signals | None = None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """The first signal inside the block only sets the request; the next does what it did before.

    Signals that are ignored (as under nohup) stay ignored. Outside the main thread Python takes no signals, so nothing
    is ever requested there.
    """
    request, before = StopRequest(), dict[signal.Signals, Any]()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def take(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        restore()
        if request.signal.name == "SIGHUP":
            _leave_terminal()
        # Not through sys.stderr, which may be in the middle of a line.
        text = f"\n{request.signal.name}: stopping after this step, with a checkpoint; a second signal stops at once\n"
        os.write(2, text.encode())

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, take)
    try:
        yield request
    finally:
        restore()


def _leave_terminal() -> None:
    """What is said to a terminal that has closed would be an error, before the checkpoint is written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and stream.isatty():
            os.dup2(nowhere, stream.fileno())

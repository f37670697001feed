"""Conversations as a chat template writes them. A template comes with a model, and so from elsewhere.

transformers runs it in Jinja's sandbox, which keeps it from files and from Python, but not from the machine's time and
memory: both are bounded here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jinja2
from transformers import PreTrainedTokenizerBase

from lorarlhf.data.rows import Message
from lorarlhf.errors import UserError, first_line

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

SECONDS = 10
MEMORY = 2**30  # bytes, beyond what the process has
MOST_TEXT = 2**24  # characters


class _TooLong(Exception):  # noqa: N818 - what it is
    """A template has run for longer than any does that ends."""


def render(tokenizer: PreTrainedTokenizerBase, conversation: list[Message], add_generation_prompt: bool) -> str:
    """A conversation as the chat template writes it.

    Raises:
        UserError: the template refuses it, fails, writes nothing or far too much, or takes too long (which is seen in
            the main thread alone).
    """
    try:
        with _bounded():
            text = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=add_generation_prompt, tokenize=False
            )
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in conversation)
        raise UserError(
            f"the chat template refuses a conversation of {roles} ({first_line(error)}), which begins "
            f"{conversation[0]['content'][:60]!r}; remove the row, or give another template as data.chat_template"
        ) from error
    except _TooLong:
        raise _unfit(f"takes more than {SECONDS} seconds") from None
    except MemoryError:
        raise _unfit(f"takes more than {MEMORY / 2**30:.0f} GiB") from None
    except Exception as error:  # of any kind: it is a program by somebody else
        raise _unfit(f"fails with {type(error).__name__}: {first_line(error)[:200]}") from error
    if not isinstance(text, str) or not text.strip():
        raise _unfit("writes nothing of a conversation")
    if len(text) > MOST_TEXT:
        raise _unfit(f"writes more than {MOST_TEXT:,} characters")
    return text


def _unfit(reason: str) -> UserError:
    return UserError(f"the chat template {reason}; give another as data.chat_template")


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raise _TooLong or MemoryError inside the block; signals reach the main thread only, and Windows has neither."""
    if threading.current_thread() is not threading.main_thread() or resource is None:
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _stop)
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)  # and again: one that is lost in a destructor is not all
    try:
        _limit_memory(limits)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _limit_memory(limits: tuple[int, int]) -> None:
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)  # pathlib would take as long as the template
    except OSError:  # no Linux: then time alone is bounded
        return
    pages = int(os.read(file, 64).split()[0])
    os.close(file)
    room = pages * resource.getpagesize() + MEMORY
    bounds = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([room, *bounds]), limits[1]))


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooLong

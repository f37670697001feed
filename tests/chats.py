"""What tests of `lorarlhf chat` ask, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorarlhf.stages.chat import Chat

HELLO = "Hello. Are the muffins any good?"


def ask(session: Chat, text: str = HELLO) -> str:
    pieces: list[str] = []
    said = session.answer(text, pieces.append)
    assert "".join(pieces) == said.text
    return said.text

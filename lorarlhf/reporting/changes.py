"""Which words of a response are others than before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `changed` if the other response has not got it in this place."""

    text: str
    changed: bool


@dataclass(frozen=True)
class Change:
    """Two responses in pieces, and the share of their words that differ, from 0 to 1."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    share: float


@lru_cache(maxsize=4096)  # a page that is made again has mostly the same ones
def change(before: str, after: str) -> Change:
    """Compare two texts word by word (Ratcliff and Obershelp 1988, by difflib); white space alone is no difference."""
    old, new = (re.findall(r"\s*\S+", text) for text in (before, after))
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    left, right = list[Piece](), list[Piece]()
    for tag, a, b, c, d in matcher.get_opcodes():
        for pieces, words in ((left, old[a:b]), (right, new[c:d])):
            if words:
                pieces.append(Piece("".join(words), tag != "equal"))
    return Change(tuple(left), tuple(right), 1 - matcher.ratio())

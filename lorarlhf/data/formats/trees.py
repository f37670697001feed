"""Trees of messages, whole or as a table of single messages (OpenAssistant: Köpf et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, groupby

from lorarlhf.data.formats.format import Format
from lorarlhf.data.formats.lists import all_pairs
from lorarlhf.data.formats.values import Row, answered, is_object, number, text
from lorarlhf.data.rows import BadRow, Message, Preference

LocatedRow = tuple[str, Row | BadRow]

_MESSAGE = ("message_tree_id", "message_id", "parent_id", "role", "text")


def gathered(rows: Iterable[LocatedRow]) -> Iterator[LocatedRow]:
    """Rows as they are, save that messages of one tree that follow each other become one row of a tree."""
    alone = count()

    def group(located: LocatedRow) -> object:
        row = located[1]
        if isinstance(row, BadRow) or not all(column in row for column in _MESSAGE):
            return next(alone)
        return row["message_tree_id"]

    for key, members in groupby(rows, group):
        if isinstance(key, int):
            yield from members
        else:
            located = list(members)
            yield located[0][0], _grown([row for _, row in located if not isinstance(row, BadRow)])


def _grown(messages: list[Row]) -> Row | BadRow:
    nodes = {message["message_id"]: {**message, "replies": []} for message in messages}
    roots = [node for node in nodes.values() if node["parent_id"] is None]
    for node in nodes.values():
        if node["parent_id"] in nodes:
            nodes[node["parent_id"]]["replies"].append(node)
        elif node["parent_id"] is not None:
            return BadRow("the message answered is not beside it: rows of one tree must follow each other")
    if len(roots) != 1:
        return BadRow("a tree without a first message, or with several")
    return {"message_tree_id": roots[0]["message_tree_id"], "prompt": roots[0]}


def _tree(row: Row) -> list[Preference | BadRow]:
    """Ranked replies of the assistant's to one message are compared with each other (Köpf et al. 2023)."""
    pairs: list[Preference | BadRow] = []
    paths: list[tuple[list[Message], Row]] = [([], row["prompt"])]
    while paths:
        before, node = paths.pop()
        role = {"prompter": "user", "assistant": "assistant"}.get(node.get("role", ""))
        if role is None:
            raise BadRow("a message's role is neither prompter nor assistant")
        turns = [*before, {"role": role, "content": text(node, "text")}]
        replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
        ranked = [reply for reply in replies if reply.get("role") == "assistant" and reply.get("rank") is not None]
        rated = [(answered(reply, "text"), -number(reply, "rank")) for reply in ranked]
        pairs += all_pairs(turns, rated, with_margin=False)
        paths += [(turns, reply) for reply in reversed(replies)]
    return pairs


TREES: Format[Preference] = Format(
    "OpenAssistant: trees of ranked messages",
    ("message_tree_id", "prompt"),
    is_object("prompt"),
    _tree,
)

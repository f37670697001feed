"""Markdown for the labelling page, as elements that the page makes: no HTML is written, so there is none to sanitise.

Texts come from models and may be meant to do harm. HTML in them stays text, links lead nowhere and say where they would
have led, images are not fetched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

Node: TypeAlias = "str | dict[str, Any]"  # text, or {"tag": ..., "children": [...]}, of a numbered list with "start"

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
_PLAIN = {"root", "paragraph", "inline", "text", "softbreak"}
_TAGS = {
    "paragraph": "p",
    "blockquote": "blockquote",
    "hr": "hr",
    "hardbreak": "br",
    "em": "em",
    "strong": "strong",
    "bullet_list": "ul",
    "ordered_list": "ol",
    "list_item": "li",
    "s": "s",
    "link": "u",
    "code_inline": "code",
    **{name: name for name in ("table", "thead", "tbody", "tr", "th", "td")},
}
_HEADINGS = {"h1": "h4", "h2": "h5"}  # the page has headings of its own above them; all smaller ones are h6
TAGS = frozenset({*_TAGS.values(), *_HEADINGS.values(), "h6", "pre"})


def markdown_nodes(text: str) -> list[Node] | None:
    """What a text looks like as Markdown; None for one without any markup, which is best shown as it stands."""
    root = SyntaxTreeNode(_PARSER.parse(text))
    if all(node.type in _PLAIN for node in root.walk()):
        return None
    return _nodes(root.children)


def _nodes(parsed: Iterable[SyntaxTreeNode]) -> list[Node]:
    return [node for part in parsed for node in _node(part)]


def _node(part: SyntaxTreeNode) -> list[Node]:
    if part.type in ("fence", "code_block"):
        return [_element("pre", [_element("code", [part.content])])]
    if part.type == "code_inline":
        return [_element("code", [part.content])]
    if part.type == "heading":
        return [_element(_HEADINGS.get(part.tag, "h6"), _nodes(part.children))]
    if part.type == "softbreak":
        return ["\n"]
    if part.type in _TAGS and not part.hidden:  # a list without space between its items hides their paragraphs
        element = _element(_TAGS[part.type], _nodes(part.children))
        if "start" in part.attrs:
            element["start"] = part.attrs["start"]
        return [element, *_destination(part)]
    if part.children:
        return _nodes(part.children)
    return [part.content] if part.content else []


def _destination(part: SyntaxTreeNode) -> list[Node]:
    address = part.attrs.get("href")
    said = "".join(child.content for child in part.children)
    return [f" ({address})"] if address and address != said else []


def _element(tag: str, children: list[Node]) -> dict[str, Any]:
    return {"tag": tag, "children": children}

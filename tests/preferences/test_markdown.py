"""Markdown as elements: what a text holds, in the elements that the page makes, and nothing that acts."""

import json
import re

import pytest

from lorarlhf.preferences.markdown import TAGS, markdown_nodes
from lorarlhf.preferences.server import PAGE


def e(tag, *children, **more):
    return {"tag": tag, "children": list(children), **more}


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("# One\n### Two", [e("h4", "One"), e("h6", "Two")]),
        (
            "a *b* **c** ~~d~~ `e`",
            [e("p", "a ", e("em", "b"), " ", e("strong", "c"), " ", e("s", "d"), " ", e("code", "e"))],
        ),
        ("one\n**two**", [e("p", "one", "\n", e("strong", "two"))]),
        ("- a\n- b\n", [e("ul", e("li", "a"), e("li", "b"))]),
        ("2. a\n\n3. b\n", [e("ol", e("li", e("p", "a")), e("li", e("p", "b")), start=2)]),
        ("```py\n<b>\n```", [e("pre", e("code", "<b>\n"))]),
        ("> a\n\n---", [e("blockquote", e("p", "a")), e("hr")]),
        (
            '[**a**](http://x "t") <http://y>',
            [e("p", e("u", e("strong", "a")), " (http://x)", " ", e("u", "http://y"))],
        ),
        ("![a](http://x)", [e("p", "!", e("u", "a"), " (http://x)")]),
    ],
)
def test_elements(text, nodes):
    assert markdown_nodes(text) == nodes


@pytest.mark.parametrize(
    "text", ["", "Four dollars.", "a\n\nb  c\n", "<b>a</b>", "2 * 3 * 4", "snake_case_name", "&lt;"]
)
def test_text_without_markup_is_left_as_it_is(text):
    assert markdown_nodes(text) is None


@pytest.mark.parametrize(
    "text", ["[a](javascript:alert(1))", "[a](data:text/html,b)", "[a](vbscript:b)", "<javascript:alert(1)>"]
)
def test_addresses_that_act_are_no_links(text):
    assert '"u"' not in json.dumps(markdown_nodes(f"{text} **b**"))


def test_deep_nesting_ends():
    assert markdown_nodes(">" * 10_000 + " a") is not None
    assert markdown_nodes("[" * 10_000 + "**a**") is not None


def test_the_page_knows_the_elements():
    script = (PAGE / "texts.js").read_text()
    listed = set(re.findall(r'"(\w+)"', re.search(r"new Set\(\[(.*?)\]\)", script, re.DOTALL)[1]))
    assert listed == TAGS

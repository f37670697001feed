"""Prompts, responses and the guideline on the labelling page: as text, as Markdown, with differences marked."""

from __future__ import annotations

import pytest
from labelling_page import choices, saved, shown

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")
expect = sync_api.expect


def test_texts_are_shown_as_text(start):
    nasty = [
        "<script>alert('script')</script><img src=x onerror=alert('image')><h1>Hi</h1>",
        "</div></main><iframe srcdoc=\"<script>parent.alert('frame')</script>\"></iframe>&amp;&lt;",
        "<style>body{display:none}</style> <a href=\"javascript:alert('link')\">x</a>  two  spaces\n\n\n and\ta tab",
    ]
    messages = [{"role": "system", "content": nasty[0]}, {"role": "user", "content": nasty[1]}]
    _, page = start(
        [
            {"prompt": nasty[0], "response_a": nasty[1], "response_b": nasty[2]},
            {"prompt": messages, "response_a": nasty[2], "response_b": nasty[0]},
        ]
    )
    saved(page, 0, 2)
    assert page.locator("#prompt p").text_content() == nasty[0]
    assert {page.locator(f"#{side} p").text_content() for side in ("left", "right")} == set(nasty[1:])
    assert "two  spaces\n\n\n and\ta" in "".join(shown(page).values())
    assert page.locator("main script, main img, main iframe, main style, main a, main h1").count() == 0
    page.keyboard.press("ArrowLeft")
    saved(page, 1, 2)
    assert page.locator("#prompt p").all_text_contents() == nasty[:2]
    assert page.locator("#prompt h3").all_text_contents() == ["system", "user"]


MARKDOWN = """\
## Eggs *today*

They cost **four dollars**, `12` a box:

3. large
4. small

```python
print("<b>eggs</b>")  # two  spaces
```

| size | price |
|---|---|
| L | 4 |
"""
HOSTILE = """\
<script>alert('script')</script> <img src=x onerror=alert('image')>

<iframe srcdoc="<script>parent.alert('frame')</script>"></iframe>

![pixel](http://127.0.0.1:9/pixel.png) [click](javascript:alert('link')) <http://127.0.0.1:9/auto>
[data](data:text/html,<script>alert('data')</script>) [**shop**](http://127.0.0.1:9/shop "<b onclick=alert(1)>")

> <style>body{display:none}</style>
"""


def test_markdown_is_shown_with_its_text_a_key_away(start):
    plain = "Four dollars,\n  and no *more"
    _, page = start([{"prompt": "**Price?**", "response_a": MARKDOWN, "response_b": plain}])
    saved(page, 0, 1)
    side = "left" if page.locator("#left pre").count() else "right"
    other = page.locator(f"#{'right' if side == 'left' else 'left'} p")
    texts = {name: page.locator(f"#{side} {name}").all_inner_texts() for name in ("h5", "em", "strong", "code", "td")}
    assert texts == {
        "h5": ["Eggs today"],
        "em": ["today"],
        "strong": ["four dollars"],
        "code": ["12", 'print("<b>eggs</b>")  # two  spaces\n'],
        "td": ["L", "4"],
    }
    assert page.locator(f"#{side} ol").get_attribute("start") == "3"
    expect(page.locator("#prompt strong")).to_have_text("Price?")
    assert other.text_content() == plain
    page.keyboard.press("r")
    assert page.locator(f"#{side} p").text_content() == MARKDOWN
    assert page.locator("#prompt p").text_content() == "**Price?**"
    expect(page.get_by_role("button", name="Raw text")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Raw text").click()
    expect(page.locator(f"#{side} ol li")).to_have_count(2)
    page.keyboard.press("d")
    assert page.locator(f"#{side} p").text_content() == MARKDOWN
    assert page.locator(f"#{side} mark").count() > 0
    page.keyboard.press("d")
    expect(page.locator(f"#{side} ol li")).to_have_count(2)


def test_hostile_markdown_runs_nothing_and_asks_nothing_of_anyone(start, browser):
    context = browser.new_context()
    running, page = start([{"prompt": HOSTILE, "response_a": HOSTILE, "response_b": "**no**"}], context=context)
    asked_for = []
    page.on("request", lambda request: asked_for.append(request.url))
    page.reload()
    saved(page, 0, 1)
    texts = page.locator("#prompt .markdown").inner_text()
    for said in (
        "<script>alert('script')</script>",
        "shop (http://127.0.0.1:9/shop)",
        "http://127.0.0.1:9/auto",
        "!pixel",
    ):
        assert said in texts
    assert page.locator("main script, main img, main iframe, main style, main a, main [onclick]").count() == 0
    page.locator("#prompt u", has_text="shop").click()
    page.wait_for_timeout(200)
    assert page.url == running.link
    assert {url for url in asked_for if not url.startswith((running.link, "data:"))} == set()
    context.close()


def test_the_guideline_is_one_key_or_tap_away(start, labels_path):
    guide = labels_path.with_name("guide.md")
    guide.write_text("# What is *better*\n\n<script>alert('guide')</script><img src=x onerror=alert(1)>")
    _, page = start(3, "--guide", guide)
    saved(page, 0, 3)
    shown = page.get_by_role("dialog", name="Guideline")
    page.keyboard.press("g")
    expect(shown).to_be_visible()
    expect(page.locator("#guide-text h4")).to_have_text("What is better")
    expect(page.locator("#guide-text p")).to_have_text(guide.read_text().splitlines()[-1])
    assert page.locator("dialog script, dialog img, dialog h1").count() == 0
    for key in ("ArrowLeft", "t", "s"):
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()
    page.get_by_role("button", name="Guideline").click()
    expect(shown).to_be_visible()
    page.keyboard.press("g")
    expect(shown).to_be_hidden()
    page.keyboard.press("b")
    saved(page, 1, 3)
    assert choices(labels_path) == ["both_bad"]


def test_differences_are_marked_on_a_key_for_the_next_pairs_too(start):
    rows = [
        {"prompt": "Q?", "response_a": "Two  <b>red</b> apples, sir.\nBye.", "response_b": "Two  <b>green</b> apples."},
        {"prompt": "R?", "response_a": "他喜欢苹果。", "response_b": "他喜欢香蕉。"},
        {"prompt": "S?", "response_a": "a " * 6000, "response_b": "b " * 6000},
    ]
    _, page = start(rows)
    saved(page, 0, 3)
    before = [page.locator(f"#{side} p").text_content() for side in ("left", "right")]
    assert page.locator("mark").count() == 0
    page.keyboard.press("d")
    marked = {tuple(page.locator(f"#{side} mark").all_text_contents()) for side in ("left", "right")}
    assert marked == {("red", ", sir", "Bye."), ("green",)}
    assert [page.locator(f"#{side} p").text_content() for side in ("left", "right")] == before
    page.keyboard.press("t")
    saved(page, 1, 3)
    marked = {tuple(page.locator(f"#{side} mark").all_text_contents()) for side in ("left", "right")}
    assert marked == {("苹果",), ("香蕉",)}
    page.keyboard.press("t")
    saved(page, 2, 3)
    expect(page.get_by_role("alert")).to_contain_text("too long to mark")
    page.get_by_role("button", name="Differences").click()
    expect(page.get_by_role("alert")).to_be_empty()
    page.keyboard.press("u")
    saved(page, 1, 3)
    assert page.locator("mark").count() == 0

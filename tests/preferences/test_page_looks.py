"""The labelling page by keyboard and screen reader, on a phone and in the dark."""

from __future__ import annotations

import pytest
from labelling_page import choices, saved

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")
expect = sync_api.expect


def test_keyboard_alone_and_screen_reader(start, labels_path):
    _, page = start(3)
    saved(page, 0, 3)
    assert page.locator("html").get_attribute("lang") == "en"
    page.keyboard.press("t")
    saved(page, 1, 3)
    expect(page.get_by_role("heading", name="Prompt")).to_be_focused()
    expect(page.get_by_role("status")).to_have_text("Saved: tie. 1 of 3.")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.id"))
        if "Undo" in reached[-1]:
            break
    names = [name.replace("← ", "").split()[0] for name in reached]
    assert names == [
        "Left",
        "Right",
        "slightly",
        "clearly",
        "far",
        "comment",
        "Tie",
        "Both",
        "Skip",
        "Differences",
        "Undo",
    ]
    page.get_by_role("button", name="Left is better").focus()
    page.keyboard.press("Enter")
    saved(page, 2, 3)
    for region in ("Prompt", "Left response", "Right response"):
        expect(page.get_by_role("region", name=region)).to_be_visible()
    for name in ("Left is better", "Right is better", "Tie", "Both bad", "Skip", "Undo", "slightly", "clearly", "far"):
        expect(page.get_by_role("button", name=name)).to_be_visible()
    expect(page.get_by_role("progressbar", name="Pairs labelled")).to_be_visible()
    expect(page.get_by_label("Comment")).to_be_visible()
    assert len(choices(labels_path)) == 2


def test_readable_on_a_phone_and_in_the_dark(start):
    long_word = "x" * 300
    row = {"prompt": long_word, "response_a": "One.\n" * 80, "response_b": long_word}
    _, page = start([row], viewport={"width": 360, "height": 740}, color_scheme="dark")
    saved(page, 0, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.get_by_role("button", name="Right is better")).to_be_in_viewport()
    background = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) != dark


def swipe(page, start, end):
    """A finger across the screen, 300 px from its top."""
    session = page.context.new_cdp_session(page)
    for kind, places in (("Start", [start]), ("Move", range(start, end, -20)), ("End", [])):
        for x in places or [None]:
            points = [] if x is None else [{"x": x, "y": 300}]
            session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


@pytest.mark.slow  # gestures of a machine that is busy with other tests come late
def test_on_a_phone_the_responses_are_one_tap_or_swipe_apart(start):
    row = {"prompt": "Q?", "response_a": "One.\n" * 80, "response_b": "Two.\n" * 80}
    _, page = start([row, row | {"prompt": "R?"}], viewport={"width": 360, "height": 740}, has_touch=True)
    saved(page, 0, 2)
    left, right = (page.get_by_role("region", name=f"{side} response") for side in ("Left", "Right"))
    chooser = page.get_by_role("group", name="Response in view")
    expect(left).to_be_in_viewport()
    expect(right).not_to_be_in_viewport()
    chooser.get_by_role("button", name="Right").tap()
    expect(right).to_be_in_viewport()
    expect(left).not_to_be_in_viewport()
    expect(chooser.get_by_role("button", name="Right")).to_have_attribute("aria-pressed", "true")
    chooser.get_by_role("button", name="Left").tap()
    expect(right).not_to_be_in_viewport()
    page.evaluate("scrollTo(0, 300)")
    swipe(page, 320, 60)
    expect(left).not_to_be_in_viewport()
    expect(right).to_be_in_viewport()
    assert page.evaluate("scrollY") == 300
    page.get_by_role("button", name="Right is better").tap()
    saved(page, 1, 2)
    expect(left).to_be_in_viewport()
    expect(right).not_to_be_in_viewport()


@pytest.mark.parametrize("lines", [2, 200])
def test_choices_stand_under_the_responses_and_in_view(lines, start):
    _, page = start([{"prompt": "Q?\n" * lines, "response_a": "One.\n" * lines, "response_b": "Two.\n" * lines}])
    saved(page, 0, 1)
    for side in ("left", "right"):
        response = page.get_by_role("region", name=f"{side} response").bounding_box()
        button = page.locator(f"[data-choice={side}]").bounding_box()
        assert (button["x"], button["width"]) == (response["x"], response["width"])
        if lines == 2:
            assert 0 < button["y"] - response["y"] - response["height"] < 20
    for name in ("Left is better", "Tie", "slightly"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    expect(page.get_by_label("Comment")).to_be_in_viewport(ratio=1)

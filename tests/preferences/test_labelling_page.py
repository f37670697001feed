"""The labelling page in a real browser, headless, against a server in a process of its own: answers and their file."""

from __future__ import annotations

import re
import signal
import statistics
import time

import pytest
from labelling_page import choices, saved, shown

from lorarlhf.preferences.labels import read_labels

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")
expect = sync_api.expect


def test_label_by_keys_and_by_clicks(start, labels_path):
    _, page = start(10)
    expected = []
    ways = [
        *(("left", "ArrowLeft"), ("right", "ArrowRight"), ("tie", "t"), ("both_bad", "B"), ("skip", "s")),
        *((choice, None) for choice in ("left", "right", "tie", "both_bad", "skip")),
    ]
    for i, (choice, key) in enumerate(ways):
        saved(page, i, 10)
        expect(page.locator("#prompt")).to_have_text(f"Question {i}?")
        sides = shown(page)
        better = {f"First {i}.": "a", f"Second {i}.": "b"}.get(sides.get(choice), choice)
        expected.append(better)
        if key:
            page.keyboard.press(key)
        else:
            page.locator(f"[data-choice={choice}]").click()
    saved(page, 10, 10)
    assert choices(labels_path) == expected
    export, reward = page.get_by_label("Commands").inner_text().splitlines()
    pairs, rows = labels_path.with_name("pairs.jsonl"), labels_path.with_name("prefs.jsonl")
    assert export == f"lorarlhf collect export {labels_path} --pairs {pairs} --out {rows}"
    assert reward == f"lorarlhf reward --recipe RECIPE --dataset {rows} --output-dir runs/own"
    expect(page.get_by_role("heading", name="All pairs are labelled")).to_be_focused()
    expect(page.locator("#answers")).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("u")
    saved(page, 9, 10)
    assert choices(labels_path) == expected[:-1]


def test_held_keys_shortcuts_of_the_browser_and_typing_give_no_labels(start, labels_path):
    _, page = start(5)
    saved(page, 0, 5)
    page.keyboard.down("t")
    saved(page, 1, 5)
    for _ in range(5):
        page.keyboard.down("t")  # what a held key sends
    page.keyboard.up("t")
    for keys in ("Control+b", "Shift+ArrowLeft", "Alt+s", "x", "Enter"):
        page.keyboard.press(keys)
    page.keyboard.press("c")
    page.keyboard.type("tbs12u")
    for key in ("ArrowLeft", "ArrowRight", "Escape"):
        page.keyboard.press(key)
    expect(page.locator("#comment")).to_have_value("tbs12u")
    page.locator("#keys").uncheck()
    page.keyboard.press("b")
    page.locator("#keys").check()
    page.keyboard.press("s")
    saved(page, 2, 5)
    assert choices(labels_path) == ["tie", "skip"]


def test_strength_and_comment(start, labels_path):
    _, page = start(3)
    saved(page, 0, 3)
    page.keyboard.press("1")
    page.keyboard.press("3")
    expect(page.locator("[data-strength='3']")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("[data-strength='1']")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("c")
    page.keyboard.type("<b>better</b> 👍")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    saved(page, 1, 3)
    expect(page.get_by_role("status")).to_have_text("Saved: right is better, far, “<b>better</b> 👍”. 1 of 3.")
    expect(page.get_by_role("status")).to_be_in_viewport()
    expect(page.locator("#comment")).to_have_value("")
    [label] = read_labels(labels_path)
    assert (label.strength, label.comment) == (3, "<b>better</b> 👍")
    assert label.seconds > 0
    page.keyboard.press("u")
    saved(page, 0, 3)
    expect(page.locator("#comment")).to_have_value("<b>better</b> 👍")
    expect(page.locator("[data-strength='3']")).to_have_attribute("aria-pressed", "true")


def test_reload_goes_on_with_the_same_pair_and_sides(start):
    _, page = start(8)
    for i in range(3):
        saved(page, i, 8)
        page.keyboard.press("t")
    saved(page, 3, 8)
    before = shown(page)
    page.reload()
    saved(page, 3, 8)
    assert shown(page) == before


def test_killed_at_any_moment_no_label_that_the_page_acknowledged_is_lost(
    run_collect, open_page, write_pairs, labels_path
):
    pairs = write_pairs(60)
    acknowledged = 0
    for life in range(3):
        running = run_collect("--pairs", pairs, "--out", labels_path, "--annotator", "ann")
        page = open_page(running.link)
        saved(page, acknowledged, 63)
        for _ in range(4 + life):
            page.keyboard.press("ArrowLeft")
            acknowledged += 1
            saved(page, acknowledged, 63)
        page.keyboard.press("ArrowRight")  # may or may not arrive
        running.stop(signal.SIGKILL)
        found = len(read_labels(labels_path))
        assert found - acknowledged in (0, 1)
        acknowledged = found
        with labels_path.open("ab") as file:
            file.write(b'{"pair_id": "p59", "annot')
        page.locator("body:not([aria-busy])").wait_for()
        page.keyboard.press("t")
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    assert len({label.pair_id for label in read_labels(labels_path)}) == acknowledged


def test_two_thousand_pairs(start, labels_path):
    _, page = start(2000)
    waits = []
    for i in range(60):
        saved(page, i, "2,100")
        began = time.perf_counter()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(
            "done => document.getElementById('done').textContent.startsWith(done)", arg=f"{i + 1} of"
        )
        waits.append(time.perf_counter() - began)
    saved(page, 60, "2,100")
    print(f"from key to next pair: median {1000 * statistics.median(waits):.0f} ms")
    expect(page.locator("#pace")).to_have_text(re.compile(r"a pair, .* left"))
    expect(page.locator("#agreement")).to_have_text(re.compile(r"repeats: 0 of \d+ the same"))  # always left
    pairs = [label.pair_id for label in read_labels(labels_path) if not label.repeat]
    assert pairs == [f"p{i}" for i in range(len(pairs))]


def test_several_scales_a_pair(start, labels_path):
    _, page = start(3, "--criteria", "helpful, <b>honest</b>,short")
    saved(page, 0, 3)
    expect(page.get_by_role("heading", level=1)).to_have_text("Which response is better (helpful)?")
    honest, short = (page.get_by_role("group", name=name, exact=True) for name in ("<b>honest</b>", "short"))
    honest.get_by_role("button", name="right").click()
    for side in ("left", "tie", "tie"):  # the last takes it back
        short.get_by_role("button", name=side).click()
    page.keyboard.press("ArrowLeft")
    saved(page, 1, 3)
    expect(page.get_by_role("status")).to_have_text("Saved: left is better, <b>honest</b>: right. 1 of 3.")
    [label] = read_labels(labels_path)
    assert label.criteria == {"helpful": label.left, "<b>honest</b>": "b" if label.left == "a" else "a"}
    expect(page.locator("[data-criterion][aria-pressed=true]")).to_have_count(0)
    page.keyboard.press("u")
    saved(page, 0, 3)
    expect(honest.get_by_role("button", name="right")).to_have_attribute("aria-pressed", "true")

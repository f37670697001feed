"""The labelling page of several people: in turn, at once, and on what they are divided."""

from __future__ import annotations

import json
import re

import pytest
from labelling_page import saved

from lorarlhf.preferences.labels import read_labels

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")
expect = sync_api.expect


def test_two_tabs(start, open_page, labels_path):
    running, one = start(6)
    other = open_page(running.link, context=one.context)
    saved(other, 0, 6)
    one.keyboard.press("t")
    saved(one, 1, 6)
    other.keyboard.press("b")
    expect(other.get_by_role("alert")).to_contain_text(
        "answered already, perhaps in another tab. Here is the next one."
    )
    expect(other.locator("#prompt")).to_have_text("Question 1?")
    other.keyboard.press("b")
    saved(other, 2, 6)
    expect(other.get_by_role("alert")).to_be_empty()
    assert [(label.pair_id, label.choice) for label in read_labels(labels_path)] == [("p0", "tie"), ("p1", "both_bad")]


def test_several_annotators_in_turn(run_collect, open_page, write_pairs, labels_path):
    running = run_collect("--pairs", write_pairs(3), "--out", labels_path, "--overlap", "1")
    page = open_page(running.link)
    for name in ("ann", "<b>bob</b>"):
        page.get_by_label("Your name").fill(name)
        page.keyboard.press("Enter")
        saved(page, 0, 3)
        assert page.locator("#name").text_content() == name
        page.keyboard.press("t")
        saved(page, 1, 3)
        page.reload()
        saved(page, 1, 3)
        page.get_by_role("button", name="Change").click()
    assert [(label.annotator, label.pair_id) for label in read_labels(labels_path)] == [
        ("ann", "p0"),
        ("<b>bob</b>", "p0"),
    ]
    page.get_by_label("Your name").fill(" ann ")
    page.keyboard.press("Enter")
    saved(page, 1, 3)


def named(open_page, link, name):
    page = open_page(link)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text(name)
    return page


def test_two_at_once_share_the_pairs(run_collect, open_page, write_pairs, labels_path):
    running = run_collect("--pairs", write_pairs(5), "--out", labels_path)
    ann, bob = (named(open_page, running.link, name) for name in ("ann", "bob"))
    expect(ann.locator("#prompt")).to_have_text("Question 0?")
    expect(bob.locator("#prompt")).to_have_text("Question 1?")
    saved(ann, 0, 5)
    ann.keyboard.press("t")
    saved(ann, 1, 4)  # bob has the fifth open
    expect(ann.locator("#prompt")).to_have_text("Question 2?")
    ann.reload()
    expect(ann.locator("#prompt")).to_have_text("Question 2?")
    bob.keyboard.press("b")
    expect(bob.locator("#prompt")).to_have_text("Question 3?")
    ann.keyboard.press("t")
    expect(ann.locator("#prompt")).to_have_text("Question 4?")
    ann.keyboard.press("t")
    expect(ann.get_by_role("heading", name="All pairs are labelled")).to_be_visible()
    expect(ann.locator("#elsewhere")).to_contain_text("All but what others have open")
    bob.keyboard.press("b")
    expect(bob.get_by_role("heading", name="All pairs are labelled")).to_be_visible()
    expect(bob.locator("#elsewhere")).to_be_hidden()
    given = {(label.annotator, label.pair_id) for label in read_labels(labels_path)}
    assert given == {("ann", "p0"), ("bob", "p1"), ("ann", "p2"), ("bob", "p3"), ("ann", "p4")}


def test_what_people_are_divided_on_is_shown_and_opened_again(run_collect, open_page, write_pairs, labels_path):
    said = [("ann", "p0", "a"), ("ann", "p1", "b"), ("bob", "p0", "a"), ("bob", "p1", "a")]
    rows = [
        {"pair_id": pair, "annotator": who, "choice": choice, "left": "a", "repeat": False, "seconds": 1.0}
        | {"strength": 2, "comment": f"{who} thinks so", "time": "", "seed": 0}
        for who, pair, choice in said
    ]
    labels_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    running = run_collect("--pairs", write_pairs(4), "--out", labels_path)
    page = named(open_page, running.link, "ann")
    saved(page, 2, 4)
    page.keyboard.press("m")
    shown = page.get_by_role("dialog", name="Most disputed")
    expect(shown.locator("#disputes > li")).to_have_count(1)
    expect(shown).to_contain_text("Question 1?")
    for text in ("First 1.", "Second 1."):
        expect(shown.locator("section", has_text=text).get_by_role("heading")).to_have_text(re.compile(": 1 for it"))
    page.set_viewport_size({"width": 360, "height": 740})
    assert shown.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    page.keyboard.press("t")  # nobody answers what is covered
    shown.get_by_role("button", name="Open again").click()
    expect(page.locator("#prompt")).to_have_text("Question 1?")
    expect(page.locator("#comment")).to_have_value("ann thinks so")
    expect(page.locator("[data-strength='2']")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status")).to_have_text("Opened again. 1 of 4.")
    left = page.locator("#left").inner_text() == "First 1."
    page.keyboard.press("ArrowLeft" if left else "ArrowRight")
    saved(page, 2, 4)
    expect(page.get_by_role("button", name="Most disputed")).to_be_hidden()
    standing = {(label.annotator, label.pair_id): label.choice for label in read_labels(labels_path)}
    assert standing == {("ann", "p0"): "a", ("ann", "p1"): "a", ("bob", "p0"): "a", ("bob", "p1"): "a"}

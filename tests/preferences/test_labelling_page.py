"""The labelling page in a real browser, headless, against a server in a process of its own."""

from __future__ import annotations

import re
import signal
import statistics
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from lorarlhf.preferences.labels import read_labels

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")
expect = sync_api.expect


@pytest.fixture
def start(run_collect, open_page, write_pairs, labels_path):
    """`start(rows)`: a server for one annotator, and its page."""

    def started(rows, *args, **options):
        running = run_collect("--pairs", write_pairs(rows), "--out", labels_path, "--annotator", "ann", *args)
        return running, open_page(running.link, **options)

    return started


def saved(page, done, total):
    """Wait until the page says so: then it must be on disk."""
    expect(page.locator("#done")).to_have_text(f"{done} of {total}")


def shown(page):
    return {side: page.locator(f"#{side}").inner_text() for side in ("left", "right")}


def choices(labels_path):
    return [label.choice for label in read_labels(labels_path)]


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


def test_texts_are_shown_as_text(start):
    nasty = [
        "<script>alert('script')</script><img src=x onerror=alert('image')><h1>Hi</h1>",
        "</div></main><iframe srcdoc=\"<script>parent.alert('frame')</script>\"></iframe>&amp;&lt;",
        "<style>body{display:none}</style> <a href=\"javascript:alert('link')\">x</a>  two  spaces\n\n\tand a tab",
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
    assert "two  spaces\n\n\tand" in "".join(shown(page).values())
    assert page.locator("main script, main img, main iframe, main style, main a, main h1").count() == 0
    page.keyboard.press("ArrowLeft")
    saved(page, 1, 2)
    assert page.locator("#prompt p").all_text_contents() == nasty[:2]
    assert page.locator("#prompt h3").all_text_contents() == ["system", "user"]


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
    running = run_collect("--pairs", write_pairs(3), "--out", labels_path)
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


def test_the_guideline_is_one_key_or_tap_away_and_shown_as_text(start, labels_path):
    guide = labels_path.with_name("guide.md")
    guide.write_text("# What is *better*\n\n<script>alert('guide')</script><img src=x onerror=alert(1)>")
    _, page = start(3, "--guide", guide)
    saved(page, 0, 3)
    shown = page.get_by_role("dialog", name="Guideline")
    page.keyboard.press("g")
    expect(shown).to_be_visible()
    assert page.locator("#guide-text").text_content() == guide.read_text()
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


@pytest.fixture
def elsewhere(tmp_path):
    """A page of another origin on this machine: one from further away Chromium itself might hold back."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "index.html").write_text("<p>not the labelling page</p>")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "elsewhere")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_other_pages_cannot_reach_or_frame_it(start, browser, elsewhere, labels_path):
    running, page = start(3)
    saved(page, 0, 3)
    page.keyboard.press("t")
    saved(page, 1, 3)
    with browser.new_page() as other:
        other.goto(elsewhere)
        for options in (
            {"mode": "no-cors", "method": "POST", "body": "{}"},
            {"mode": "cors", "method": "POST", "body": "{}", "headers": {"Content-Type": "application/json"}},
            {"mode": "cors"},
        ):
            attempt = "([link, options]) => fetch(link + 'api/undo', options).then(() => 'answered', () => 'blocked')"
            assert other.evaluate(attempt, [running.link, options]) == "blocked"
        other.evaluate(
            """link => new Promise((loaded) => {
                const frame = document.createElement("iframe");
                frame.onload = loaded;
                frame.src = link;
                document.body.append(frame);
            })""",
            running.link,
        )
        assert other.frames[-1].locator("#task").count() == 0
    assert choices(labels_path) == ["tie"]


def test_a_link_of_an_earlier_start_is_refused(start, open_page):
    running, _ = start(3)
    wrong = running.link[:-2] + "/"
    page = open_page(wrong)
    assert page.locator("body").inner_text() == "Open the link that `lorarlhf collect` printed when it last started."

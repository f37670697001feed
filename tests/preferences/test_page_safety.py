"""What pages of others can do to the labelling page: nothing."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from labelling_page import choices, saved

pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")


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

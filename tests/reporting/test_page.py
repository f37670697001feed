"""The page: whole, inert, of one file, in a real browser too; and the server that follows a run."""

from __future__ import annotations

import json
import re
import signal
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from demo_runs import write_jsonl
from starlette.testclient import TestClient
from typer.testing import CliRunner

from lorarlhf.cli.main import app
from lorarlhf.errors import UserError
from lorarlhf.reporting.figures import draw
from lorarlhf.reporting.plots import Series, plot_over
from lorarlhf.reporting.server import make_app, state_of
from lorarlhf.run import write_json
from lorarlhf.stages.report import read_runs, write_report

BASELINES = {"longer_wins_accuracy": "0.9", "bag_of_words_accuracy": "0.9"}
NOT_OURS = "summary.json is not as this version writes it"
HERE = "http://127.0.0.1:8000"
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7 * 7 }}\x01"


class Tags(HTMLParser):
    """Names of a page's elements, and their attributes."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes += attributes


def written(*runs, path):
    write_report([run.path for run in runs], path)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def hostile(make_run):
    """A run in which every text is an attack."""
    run = make_run(f"<b>{'x' * 5}")
    write_jsonl(
        run.path / "ppo" / "samples.jsonl",
        [
            {
                "iteration": at,
                "prompt": [{"role": ATTACK, "content": ATTACK}],
                "response": f"{ATTACK}\ud800 {at}",
                "reward": at,
            }
            for at in (0, 3)
        ],
    )
    rows = (run.path / "ppo" / "metrics.jsonl").read_text()
    more = {"iteration": 4, ATTACK: 1.0, f"seconds_{ATTACK}": 1e308, "reward": -1e308, "warnings": {ATTACK: ATTACK}}
    (run.path / "ppo" / "metrics.jsonl").write_text(f"{rows}{json.dumps(more)}\n")
    recipe = (run.path / "recipe.yaml").read_text()
    quoted = json.dumps(ATTACK.rstrip("\x01"))
    (run.path / "recipe.yaml").write_text(recipe.replace("name: shipped:demo/model", f"name: {quoted}"))
    summary = json.loads((run.path / "ppo" / "summary.json").read_text())
    (run.path / "ppo" / "summary.json").write_text(json.dumps({**summary, ATTACK: ATTACK, "stopped": ATTACK}))
    frontier = {"judge": ATTACK, "prompts": ATTACK, "checkpoints": [{"iteration": ATTACK, "kl": 1, "reward": 2}]}
    (run.path / "ppo" / "frontier.json").write_text(json.dumps(frontier))
    return run


def test_nothing_of_a_run_is_markup(hostile, make_run, tmp_path):
    page = written(hostile, make_run("other"), path=tmp_path / "report.html")
    tags = Tags(page)
    assert page.count("<script") == page.count("</script") == 1
    assert {"img", "b-x"}.isdisjoint(tags.names)
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name == "style"]
    assert "&lt;img src=x" in page
    assert "{{ 7 * 7 }}" in page, "a text is no template"


def test_the_page_asks_for_nothing(make_run, tmp_path):
    page = written(make_run(), path=tmp_path / "report.html")
    policy = dict(part.split(" ", 1) for part in unescape(re.search(r'Policy" content="([^"]+)"', page)[1]).split("; "))
    assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("form-action") == "'none'"
    assert set(policy) == {"script-src", "style-src"}
    assert all(re.fullmatch(r"'sha256-[\w+/=]+'", value) for value in policy.values())
    addresses = set(re.findall(r"https?://[^\"'\s<]+", page))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names, not addresses"
    for forbidden in ("innerHTML", "document.write", "eval(", "Function("):
        assert forbidden not in page


def test_every_figure_has_a_table_and_names_of_its_own(make_run, frontier, tmp_path):
    run = make_run()
    frontier(run)
    page = written(run, path=tmp_path / "report.html")
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) > 10
    assert all(figure.count("<svg") == figure.count("<table") == 1 for figure in figures)
    names = [text for name, text in Tags(page).attributes if name == "id"]
    assert len(names) == len(set(names))
    assert "held out, iteration 3: 0.250</title>" in page
    assert "#0303" not in page, "a colour that stands for the page's"


@pytest.mark.parametrize("count", [1, 2, 3, 300])
def test_an_axis_of_iterations_has_no_halves(count):
    points = [(float(k), k / 7) for k in range(1, count + 1)]
    plot = plot_over("reward", "iteration", "reward", [Series("training", tuple(points))])
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", draw(plot))
    ticks = texts[: texts.index("iteration")]
    assert ticks
    assert all(tick.isdecimal() for tick in ticks), ticks


def test_the_same_run_gives_the_same_figures(make_run, tmp_path):
    run = make_run()
    first, second = (re.sub("written .* by", "", written(run, path=tmp_path / f"{n}.html")) for n in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"margins": {"edges": [1e308, 1.5e308], "pairs": [3]}}, "</html>"),
        ({"margins": {"edges": [-1e150, 1e150], "pairs": [3]}}, "</html>"),
        (
            {"eval_accuracy": "0.8", "eval_accuracy_interval": ["0.7", "0.9"], **dict.fromkeys(BASELINES, "0.9")},
            NOT_OURS,
        ),
        ({"eval_accuracy": 10**400}, NOT_OURS),
        ({"eval_accuracy_interval": [0.7, 0.9, 1.0]}, NOT_OURS),
    ],
)
def test_figures_from_elsewhere_do_not_end_the_page(changes, said, make_run, tmp_path):
    run = make_run()
    run.write_summary("reward", {**run.read_summary("reward"), "bag_of_words_accuracy": 0.75, **changes})
    assert said in written(run, path=tmp_path / "report.html")


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({}, "over-optimised from checkpoint 4 on (KL 2.0): judge&#39;s reward -1.000 (95%: -1.500 to -0.500), run"),
        ({"outcome": "unclear"}, "the judge likes checkpoint 2 best, but to checkpoint 4 the change of -1.000"),
        ({"judge_change": "much"}, "frontier.json is not as this version writes it"),
        ({"compared": [7, 8]}, "frontier.json is not as this version writes it"),
        ({"outcome": "of another version"}, "frontier.json is not as this version writes it"),
    ],
)
def test_the_page_has_the_verdict_of_the_terminal(turn, said, make_run, frontier, tmp_path):
    run = make_run()
    assert "over-optimised" not in written(run, path=tmp_path / "without.html")
    frontier(run)
    path = run.path / "ppo" / "frontier.json"
    found = json.loads(path.read_text())
    write_json(path, {**found, "over_optimisation": {**found["over_optimisation"], **turn}})
    assert said in written(run, path=tmp_path / "report.html")


def test_a_figure_that_cannot_be_drawn_is_a_line(make_run, tmp_path, monkeypatch):
    def refuse(plot):
        if plot.title == "kl":
            raise ValueError("arange: <too> large")
        return draw(plot)

    monkeypatch.setattr("lorarlhf.reporting.page.draw", refuse)
    page = written(make_run(), path=tmp_path / "report.html")
    assert page.count("cannot be drawn: arange: &lt;too&gt; large") == 1
    [figure] = [part for part in re.findall(r"<figure>.*?</figure>", page, re.DOTALL) if "cannot be drawn" in part]
    assert "<figcaption>kl<" in figure
    assert "<table" in figure


def test_a_link_is_replaced_and_not_followed(make_run, tmp_path):
    run = make_run()
    theirs = tmp_path / "profile"
    theirs.write_text("mine")
    path = run.path / "report.html"
    path.symlink_to(theirs)
    written(run, path=path)
    assert theirs.read_text() == "mine"
    assert not path.is_symlink()


def test_a_page_that_cannot_be_written_leaves_the_one_before(make_run, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    before = written(make_run(), path=path)
    whole = Path.write_bytes

    def cut(self, data):
        whole(self, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(UserError, match=r"report\.html: cannot be written: No space left on device"):
        write_report([tmp_path / "mine"], path)
    assert path.read_text(encoding="utf-8") == before
    assert not list(tmp_path.glob(".*"))


# In a browser


def requests_of(page):
    found = []
    page.on("request", lambda request: found.append(request.url))
    return found


def test_from_the_disk(make_run, hostile, open_page, tmp_path):
    path = tmp_path / "report.html"
    written(make_run(), hostile, path=path)
    page = open_page("about:blank", viewport={"width": 375, "height": 800})
    asked, said = requests_of(page), []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    assert (asked, said) == ([path.as_uri()], [])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone scrolls one way"
    samples = page.locator("#run1-samples li:visible .prompt")
    orders = {"best": "Where", "worst": "Thanks", "changed": "Where", "longest": "user Have", "order": "Where"}
    for order, first in orders.items():
        page.locator("#run1-order").select_option(order)
        assert samples.first.inner_text().startswith(first), order
    page.locator("#run1-words").fill("plums")
    assert samples.all_inner_texts() == ["user Have you got pears?"]
    assert page.locator("#run1-samples ins:visible").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_the_pages_colours(scheme, make_run, open_page, tmp_path):
    path = tmp_path / "report.html"
    written(make_run(), path=path)
    page = open_page(path.as_uri(), color_scheme=scheme)
    ink = page.locator("body").evaluate("element => getComputedStyle(element).color")
    assert page.locator("svg text").first.evaluate("element => getComputedStyle(element).fill") == ink
    line = page.locator("svg [stroke='var(--series-0)']").first.evaluate("element => getComputedStyle(element).stroke")
    assert line == {"light": "rgb(31, 111, 180)", "dark": "rgb(121, 180, 240)"}[scheme]


def test_the_page_follows_a_run(make_run, run_collect, open_page):
    run = make_run()
    running = run_collect("--run", run.path, "--watch", command="report")
    page = open_page(running.link, viewport={"width": 1000, "height": 600})
    page.locator("#run1-order").select_option("worst")
    page.locator("#run1-ppo-more, #run1-resolved").last.locator("summary").click()
    page.locator("h1").click()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 900)")
    with (run.path / "ppo" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "reward": 9.5}\n')
    page.get_by_text("not finished: 4 of 3 iterations").first.wait_for()
    assert page.locator("#run1-order").input_value() == "worst"
    assert page.locator("#run1-samples li:visible .prompt").first.inner_text().startswith("Thanks")
    assert page.locator("#run1-resolved").get_attribute("open") is not None
    assert page.evaluate("scrollY") == 900
    assert running.stop(signal.SIGINT) == ""
    page.get_by_text("lorarlhf report has ended").wait_for()


# The server


@pytest.fixture
def client(make_run):
    runs = [make_run().path]
    return TestClient(make_app(runs, lambda: read_runs(runs), "token"), base_url=f"{HERE}/token/")


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"host": "evil.example"}, ""),
        ({"origin": "http://evil.example"}, "state"),
        ({}, f"{HERE}/other/"),
        ({}, f"{HERE}/"),
    ],
)
def test_strangers_are_refused(client, headers, path):
    reply = client.get(path, headers=headers)
    assert reply.status_code == 403
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_the_server_has_the_page_and_nothing_else(client, make_run):
    reply = client.get("")
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store")
    assert "connect-src 'self'" in reply.headers["content-security-policy"]
    assert f'data-live="{client.get("state").text}"' in reply.text
    for path in ("recipe.yaml", "../recipe.yaml", "%2e%2e/recipe.yaml", "ppo/metrics.jsonl"):
        assert client.get(path).status_code in (403, 404)


def test_the_state_changes_with_the_run(make_run):
    run = make_run()
    before = state_of([run.path])
    assert state_of([run.path]) == before
    (run.path / "ppo" / "evaluation.json").write_text("{}")
    assert state_of([run.path]) != before


# The command


def report(*args):
    return CliRunner().invoke(app, ["report", *map(str, args)])


def refusal(*args):
    error = report(*args).exception
    assert isinstance(error, UserError), error
    return str(error)


def test_the_command(make_run, tmp_path):
    first, second = make_run("a"), make_run("b")
    done = report("--run", first.path)
    assert (done.exit_code, done.stdout) == (
        0,
        f"report: written to {first.path / 'report.html'}; any browser opens it\n",
    )
    out = tmp_path / "new" / "both.html"
    for several in (["--run", first.path, "--run", second.path], ["--run", first.path, second.path]):
        assert report(*several, "--out", out).exit_code == 0
        assert "<h2>Compared</h2>" in out.read_text(encoding="utf-8")
        out.unlink()


def test_refusals(make_run, tmp_path, monkeypatch):
    run = make_run().path
    assert "not a run" in refusal("--run", tmp_path)
    assert "not a run" in refusal("--run", tmp_path / "none", "--watch", "--no-open")
    for several in (["--run", run, "--run", run], ["--run", run, run]):
        assert refusal(*several).startswith("--out: missing; of several runs")
    assert refusal("--run", run, "--watch", "--out", "x.html").startswith("--out: says where")
    assert "must end in .html" in refusal("--run", run, "--out", run / "recipe.yaml")
    (tmp_path / "taken.html").mkdir()
    assert "cannot be written" in refusal("--run", run, "--out", tmp_path / "taken.html")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    needed = "report: a figure needs matplotlib.figure; install it with: pip install 'lorarlhf[plots]'"
    assert refusal("--run", run) == needed
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lorarlhf.loopback", raising=False)
    assert refusal("--run", run, "--watch") == "--watch needs uvicorn; install it with: pip install 'lorarlhf[collect]'"

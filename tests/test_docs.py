"""What pages of documentation point to is there: files, headings, Python objects. `make docs` builds the site."""

import json
import pkgutil
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), ROOT / "data" / "README.md"]


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pages_of_nav(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of_nav(entry)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    for path, _, anchor in (link.partition("#") for link in links if not link.startswith(("http:", "https:"))):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages_of_nav(nav)) == sorted(page.name for page in DOCS.glob("*.md"))


def test_what_is_made_from_the_sections_is_up_to_date():
    reference = runpy.run_path(str(DOCS / "reference.py"))
    for path, text in {**reference["pages"](), reference["SCHEMA"]: reference["schema_text"]()}.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is old: make reference"


def test_documented_objects_exist():
    names = [name for page in DOCS.glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)]
    assert names
    for name in names:
        pkgutil.resolve_name(name)


def test_what_the_campaign_of_faults_has_found_is_told():
    totals = json.loads((ROOT / "benchmarks" / "results" / "faults-cpu.json").read_text(encoding="utf-8"))["totals"]
    told = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+ of [\d,]+) \|$", (DOCS / "reliability.md").read_text(), re.MULTILINE)
    assert dict(told) == {part: f"{count['held']:,} of {count['tried']:,}" for part, count in totals.items()}


def test_the_licence_of_every_dependency_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in wanted} - {"lorarlhf"}
    table = (DOCS / "security.md").read_text(encoding="utf-8").split("| licence | packages |")[1]
    assert {name for name in names if not re.search(rf"[ |]{re.escape(name)}[ ,;]", table)} == set()

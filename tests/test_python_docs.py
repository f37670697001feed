"""The Python that the documentation shows, run in its order in one namespace, with small data."""

import json
import re
from pathlib import Path

import pytest
from demo_runs import small_sets

import lorarlhf
from lorarlhf.rl.rewards import function_scores

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """`load_recipe` with small data and short responses behind what is asked for; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    small = [*small_sets(tmp_path / "data"), "reward.per_device_eval_batch_size=64"]
    load = lorarlhf.load_recipe
    monkeypatch.setattr(lorarlhf, "load_recipe", lambda name, *, sets: load(name, sets=[*sets, *small]))


def run(blocks: list[str], name: str) -> dict:
    namespace: dict = {"__name__": name}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
    return namespace


def python_of(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_rule_with_answers():
    exact = run(python_of("reward-functions.md"), "reward-functions.md")["exact"]
    responses = ["It is 42.", "12 + 30 = 41", "no idea", "-42"]
    scores = function_scores([(exact, 1.0)], ["?"] * 4, responses, {"answer": ["42"] * 4, "id": [1, 2, 3, 4]})
    assert scores.tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.usefixtures("small")
def test_the_page_on_python(tmp_path, capsys):
    names = run(python_of("python.md"), "python.md")
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert isinstance(names["polite"], float)
    assert capsys.readouterr().out.splitlines()[-1].startswith("runs/nowhere: not a run, there is no recipe.yaml")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in lorarlhf.__all__ if f"`{name}" not in page] == []


@pytest.mark.usefixtures("small")
def test_the_notebook():
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    names = run(cells, "quickstart.ipynb")
    assert len(names["scores"]) == 2
    assert names["evaluation"]["stage"] == "ppo"
    assert (names["folder"] / "model.safetensors").is_file()
